"""Every preset has the property that defines it, in every draw; what starts at random starts with levels of the cells only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import pvae_pyro as pv
from pvae_pyro.guides.point import Points
from pvae_pyro.presets import OFF, Preset
from pvae_pyro.story import MMD, CausalGraph
from pvae_pyro.story.loadings import GeneSets

SETS = {"first": ["gene01", "gene02", "gene03"], "second": ["gene03", "gene04", "not measured"], "third": ["gene10"]}
ADDITIVE: dict[str, Callable[[], Preset]] = {
    "sams_vae": lambda: pv.presets.sams_vae(5),
    "cpa": lambda: pv.presets.cpa(5),
    "discrepancy_vae": lambda: pv.presets.discrepancy_vae(5),
    "sena": lambda: pv.presets.sena(SETS),
    "svae_plus": lambda: pv.presets.svae_plus(5, compose=True),
}
RIVALS = ADDITIVE | {"conditional_vae": lambda: pv.presets.conditional_vae(5), "alone": lambda: pv.presets.svae_plus(5)}


@cache
def world(doubles: int = 3) -> pv.Screen:
    made = pv.simulate.simulate(seed=1, targets=6, doubles=doubles, controls=60, cells_per_condition=12, genes=20, batches=2)
    return pv.Screen.from_anndata(made.adata, "condition", batch_key="batch")


def short(preset: Preset) -> Preset:
    settings = replace(preset.settings, epochs=1, batch_size=100, validation=0.0)
    return replace(preset, model=preset.model.replace(background=2, hidden=4), settings=settings)


@cache
def fitted(name: str, doubles: int = 3) -> pv.Fit:
    return short(RIVALS[name]()).fit(world(doubles), seed=0, device="cpu", progress=False)


def shifts(fit: pv.Fit, conditions: list[str]) -> Tensor:
    """Latent shift before the graph, (draws, conditions, latents), interactions included."""
    recipe = fit.predict(conditions, draws=5, seed=2).recipe
    with torch.no_grad():
        return torch.stack([recipe.shift(row)[0] for row in range(len(conditions))], 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ADDITIVE)
def test_latent_shifts_of_an_unseen_pair_add_exactly_in_every_draw(name: str) -> None:
    fit = fitted(name)
    assert "T01+T06" not in fit.conditions
    one, other, pair = shifts(fit, ["T01", "T06", "T01+T06"]).unbind(1)
    assert torch.allclose(one + other, pair, rtol=1e-5, atol=1e-6) and pair.abs().sum() > 0
    assert fit.model.variance_spread == 0 and not {"log_variance", "coupling"} & set(fit.modules()[1].family.sites)


def test_sams_gates_are_drawn_at_a_fixed_rate_and_effects_are_standard() -> None:
    summary = shifts_of_prior(pv.presets.sams_vae(latents=10, nonzero=2.0))
    assert (summary != 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert summary[summary != 0].std().item() == pytest.approx(1.0, abs=0.05)


def test_cpa_effects_are_dense_and_have_no_gates() -> None:
    assert (shifts_of_prior(pv.presets.cpa(10)) != 0).all()
    assert fitted("cpa").modules()[1].inclusion() is None
    assert isinstance(fitted("cpa").model.alignment, MMD)


def shifts_of_prior(preset: Preset) -> Tensor:
    """Effects of 400 targets drawn from the preset's prior, (targets, 10)."""
    from pvae_pyro.story.plates import Plates

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return preset.model.effects.sample(Plates.make(400, 1, 10, 3), torch.ones(10))


def test_discrepancy_graph_is_strictly_triangular_and_alignment_is_mmd() -> None:
    fit = fitted("discrepancy_vae")
    assert isinstance(fit.model.graph, CausalGraph) and isinstance(fit.model.alignment, MMD)
    story, guide = fit.modules()
    torch.manual_seed(0)
    graphs = [guide.assemble(guide.sample_globals()).graph for _ in range(20)]
    assert all(torch.equal(graph, graph.tril(-1)) for graph in graphs) and any(graph.any() for graph in graphs)
    assert not fitted("sams_vae").modules()[0].globals().graph.any()


def test_sena_loadings_are_zero_outside_of_their_set_and_learnt_inside() -> None:
    fit = fitted("sena")
    loadings, begun = (s["story.decoder.responsive"] for s in (fit.state, fit.start_state))
    outside = GeneSets(tuple((k, tuple(v)) for k, v in SETS.items())).outside([str(g) for g in fit.genes[fit.active]])
    assert loadings.shape[0] == 3 and (~outside).sum() == 6
    assert not loadings[outside].any() and (loadings[~outside] != begun[~outside]).all()
    reached = ~outside.all(0).numpy()
    both = fit.predict(["T01+T06", "T03+T05"], draws=4)  # neither trained, so that their batches are the same
    genes = both.contrast("T01+T06", "T03+T05").draws[:, fit.active]
    assert np.abs(genes[:, ~reached]).max() < 1e-5 < 1e-3 < np.abs(genes[:, reached]).max()


def test_sena_refuses_what_it_cannot_do() -> None:
    with pytest.raises(pv.InputError, match="no gene set"):
        pv.presets.sena({})
    with pytest.raises(pv.InputError, match="'wrong'"):
        short(pv.presets.sena(SETS | {"wrong": ["X"]})).fit(world(), progress=False)
    with pytest.raises(pv.InputError, match="random only"):
        pv.presets.sena(SETS).with_our_start()
    with pytest.raises(pv.InputError, match="as many responsive"):
        pv.presets.sena(SETS).model.replace(responsive=7)


def test_svae_plus_refuses_pairs_unless_asked_to_add_them() -> None:
    fit = fitted("alone")
    trained = next(name for name in fit.conditions if "+" in name)
    assert np.isfinite(fit.predict(["T01", trained], draws=3).draws()).all()
    with pytest.raises(pv.InputError, match=r"'T01\+T06' was not trained.*cannot compose.*compose=True"):
        fit.predict(["T01", "T01+T06"])
    assert isinstance(fit.modules()[1].family, Points)  # point estimates, as published
    assert np.isfinite(fitted("svae_plus").predict(["T01+T06"], draws=3).draws()).all()


def test_a_conditional_vae_knows_nothing_of_a_new_pair_but_its_prior() -> None:
    fit = fitted("conditional_vae", 0)
    drawn = fit.predict(["T01+T06", "T02+T03", "T01"], draws=400, seed=0).recipe
    with torch.no_grad():
        pair, other, single = (drawn.shift(row)[0] for row in range(3))  # type: ignore[union-attr]
    for new in (pair, other):
        assert new.mean(0).abs().max() < 4 * new.std(0).max() / 20
        assert new.std().item() == pytest.approx(1.0, abs=0.15)  # an effect's own prior
    assert abs(np.corrcoef(pair.flatten(), single.flatten())[0, 1]) < 0.1
    assert fit.model.alignment.weight == 0 and "gates" not in fit.modules()[1].family.sites


def test_ours_is_the_default_and_its_start_is_one_of_the_choices() -> None:
    ours = pv.presets.perturbed_vae()
    assert ours.model == pv.PerturbedVAE() and ours.settings == pv.FitSettings() and ours.guide == pv.Amortized()
    warm = pv.presets.sams_vae(5).with_our_start()
    assert warm.settings.warm_start and warm.model.responsive is None and warm.model.interaction == OFF
    assert not any(make().settings.warm_start for make in RIVALS.values())


def test_a_random_start_knows_levels_and_noise_but_nothing_of_perturbations() -> None:
    fit = fitted("cpa").at_start()
    effects = fit.effects_table(draws=50)
    assert (effects["mean"].abs() < 5 * effects["sd"] / 50**0.5).all()
    control = fit.training.index("control")
    predicted = fit.predict("control", draws=50).summary("latent_mean").mean[0]
    assert np.abs(predicted - fit.training.mean[control]).max() < 0.5
    assert np.abs(predicted - fit.training.mean[control]).mean() < 0.15


@pytest.mark.parametrize("name", ["sena", "alone"])
def test_a_saved_preset_reads_back_to_the_same_draws(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from pvae_pyro.story.composition import Separate

    fit = fitted(name)
    back = pv.Fit.load(fit.save(tmp_path / "run"), parts=[Separate, GeneSets])
    assert back.model == fit.model
    assert np.array_equal(back.predict("T01", draws=3).draws(), fit.predict("T01", draws=3).draws())
