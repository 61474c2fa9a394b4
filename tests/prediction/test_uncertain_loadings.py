"""Drawn loadings: what they add to predictions, that nothing else moves, and that every guide, file and export bears them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine

from pvae_pyro.config import from_dict, to_dict
from pvae_pyro.errors import InputError
from pvae_pyro.guides import Amortized, Ensemble, Flow, LowRank, Map
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.prediction.recipe import Recipe
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import (
    Additive,
    Gaussian,
    Interaction,
    ModulatedGraph,
    NegativeBinomial,
    PerturbedVAE,
    UncertainLoadings,
)

PLAIN = PerturbedVAE(background=3, hidden=0)
OFF = Interaction(width=0.0, width_spread=0.0, stretch=0.0, outside=0.0, surprise_spread=0.0)
LINEAR = PLAIN.replace(composition=Additive(), likelihood=Gaussian(link="identity"), interaction=OFF)
ASKED = ["T01", "T02+T05"]
DRAWS = 400


@cache
def screen() -> Screen:
    world = simulate("default", seed=1, targets=6, doubles=3, controls=80, cells_per_condition=20, genes=25, batches=1)
    return Screen.from_anndata(world.adata, "condition", batch_key="batch")


@cache
def fitted(model: PerturbedVAE, guide: Amortized | Ensemble | None = None, epochs: int = 0) -> Fit:
    settings = FitSettings(epochs=epochs, batch_size=100, validation=0.0)
    return fit(model, screen(), guide=guide, settings=settings, device="cpu", progress=False)


def recipe_of(one: Fit, draws: int) -> Recipe:
    recipe = one.predict(ASKED, draws=draws, n_cells=50, seed=2).recipe
    assert isinstance(recipe, Recipe)
    return recipe


def without(recipe: Recipe) -> Recipe:
    """The same draws with the decoder's own loadings."""
    bare = [replace(d, shared={k: v for k, v in d.shared.items() if k != "loadings"}) for d in recipe.draws]
    return replace(recipe, draws=bare)


def test_it_moves_nothing_but_loadings() -> None:
    off, on = fitted(LINEAR), fitted(LINEAR.replace(loadings=UncertainLoadings()))
    own = {name for name in on.state if "loadings" in name}
    assert set(on.state) - own == set(off.state) and len(own) == 4  # turn, sd; centre, spread
    assert all(torch.equal(off.state[name], on.state[name]) for name in off.state)
    one, other = recipe_of(off, 3).draws, recipe_of(on, 3).draws
    for a, b in zip(one, other, strict=True):
        assert "loadings" not in a.shared and b.shared["loadings"].any()
        assert torch.equal(a.shared["effects"], b.shared["effects"]) and torch.equal(a.shared["noise"], b.shared["noise"])
    assert not torch.equal(other[0].shared["loadings"], other[1].shared["loadings"])


@pytest.mark.parametrize("graph", [LINEAR.graph, ModulatedGraph(density=0.5, modulation=0.3)])
def test_a_draw_predicts_with_its_own_loadings(graph: object) -> None:
    """Written out: W + offset in place of W, for mean, spread, programs and cells."""
    recipe = recipe_of(fitted(LINEAR.replace(graph=graph, loadings=UncertainLoadings())), 4)
    decoder = recipe.guide.story.decoder
    for row in (0, 1):
        _, _, v = recipe.shift(row)
        eta, variance, _ = recipe.predictor(row)
        programs = recipe.pushed(row).programs
        for number, draw in enumerate(recipe.draws):
            plain, columns = decoder.responsive.detach().clone(), torch.tensor([3, 0])
            generators = [torch.Generator().manual_seed(5) for _ in range(2)]
            with torch.no_grad():
                cells = recipe.cells(row, np.full(6, number), generators[0])
                decoder.responsive.add_(draw.shared["loadings"])
                bare = without(replace(recipe, draws=[draw]))
                expected, made = bare.predictor(row), bare.pushed(row).programs[0]
                same_cells = bare.cells(row, np.zeros(6, dtype=int), generators[1])
                decoder.responsive.copy_(plain)
            for one, other in zip((eta[number], variance[number], v[number]), expected, strict=True):
                torch.testing.assert_close(one, other[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(programs[number], made, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(recipe.pushed(row).programs_at(columns), programs[..., columns], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(cells, same_cells, rtol=1e-4, atol=1e-4)


def test_total_variance_of_a_shift_gains_that_of_its_loadings() -> None:
    """Var(eta) = Var without + E[(carried shift turn)^2] sd^2: D is independent of all else in the draws."""
    recipe = recipe_of(fitted(LINEAR.replace(loadings=UncertainLoadings())), DRAWS)
    story, bare = recipe.guide.story, without(recipe)
    row = 1
    with torch.no_grad():
        gain = recipe.predictor(row)[0].double().var(0) - bare.predictor(row)[0].double().var(0)
        pushed = recipe.pushed(row)
        latents = (recipe.shift(row)[0].unsqueeze(-2) @ pushed.carry).squeeze(-2)
        z_mean = torch.stack([d.z_mean for d in recipe.draws])
        coupling = torch.stack([d.shared["coupling"] for d in recipe.draws])
        # the mean of the backgrounds goes through them, too
        latents = latents + (z_mean.unsqueeze(-2) @ coupling @ pushed.carry).squeeze(-2)
        law = ((latents @ story.loadings_turn).square().mean(0) @ story.loadings_sd.square()).double()
        total = recipe.predictor(row)[0].double().var(0)
    error = total * (2 / DRAWS) ** 0.5  # Monte Carlo error of a variance; that of the cross term is no larger
    assert (gain - law).abs().div(2 * error).max() < 3.5
    assert abs(float(gain.sum() / law.sum()) - 1) < 0.15 and float(law.sum() / total.sum()) > 0.05


@pytest.mark.parametrize("guide", [Amortized(), LowRank(rank=2), Flow(largest=10**6), Map(), Ensemble(n=2)],
                         ids=["amortized", "low-rank", "flow", "map", "ensemble"])  # fmt: skip
def test_every_guide_keeps_the_law_through_training_and_saving(guide: Amortized | Ensemble, tmp_path: Path) -> None:
    one = fitted(PLAIN.replace(loadings=UncertainLoadings(width=0.5)), guide, epochs=1)
    assert np.isfinite(one.history["loss"]).all()
    for member in one.members:
        story, trained = member.modules()
        family = trained.family
        assert not family.loc["loadings"].any() and "loadings" not in getattr(family, "covered", ())
        torch.testing.assert_close(family.log_scale["loadings"].exp(), 0.5 * story.loadings_sd)
        with torch.no_grad(), poutine.block():
            drawn = torch.stack([trained.sample_globals()["loadings"] for _ in range(20)]) / story.loadings_sd
        expected = 0.0 if isinstance(guide, Map) else 0.25
        assert abs(float(drawn.square().mean()) - expected) <= 4.5 * expected * (2 / drawn.numel()) ** 0.5
    again = Fit.load(one.save(tmp_path / "run"))
    assert again.model == one.model
    np.testing.assert_array_equal(again.predict(ASKED, draws=4).draws(), one.predict(ASKED, draws=4).draws())


def test_export_names_its_dimensions_and_diagnosis_is_whole() -> None:
    one = fitted(LINEAR.replace(loadings=UncertainLoadings()))
    tree = one.to_datatree(draws=4, genes=5)
    drawn = tree["posterior"]["loadings"]
    assert drawn.dims == ("chain", "draw", "axes", "gene") and drawn.shape[-1] == 5
    # guide and prior have one law, so that these sites add nothing to log p - log q
    gap = (tree["sample_stats"]["log_prior"] - tree["sample_stats"]["log_q"]).values
    bare = fitted(LINEAR).to_datatree(draws=4, genes=5)["sample_stats"]
    np.testing.assert_allclose(gap, (bare["log_prior"] - bare["log_q"]).values, rtol=1e-4)
    topics = {finding.topic for finding in one.diagnose()}
    assert topics == {finding.topic for finding in fitted(LINEAR).diagnose()}


def test_counts_escaping_cells_and_new_targets_bear_it() -> None:
    model = PLAIN.replace(loadings=UncertainLoadings(), likelihood=NegativeBinomial())
    posterior = fitted(model).predict(["T01", "T03+T04"], draws=5, n_cells=10)
    assert np.isfinite(posterior.draws()).all() and np.isfinite(posterior.new_cells("T01", 4)).all()


def test_without_the_closed_form_start_it_is_refused() -> None:
    model = PLAIN.replace(loadings=UncertainLoadings())
    with pytest.raises(InputError, match="uncertain loadings need warm_start=True"):
        fit(model, screen(), settings=FitSettings(epochs=0, warm_start=False), device="cpu", progress=False)
    with pytest.raises(InputError, match="width must be greater than 0"):
        UncertainLoadings(width=0.0)


def test_a_file_says_auto_for_loadings_that_are_parameters() -> None:
    default = from_dict({})
    described = to_dict(default)
    assert described["story"]["loadings"] == "auto" and from_dict(described) == default
    asked = from_dict({"story": {"loadings": {"name": "uncertain", "width": 0.5}}})
    assert asked.model == PerturbedVAE(loadings=UncertainLoadings(width=0.5)) and from_dict(to_dict(asked)) == asked
