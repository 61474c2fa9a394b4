"""Predictions with escaping cells: mixtures in the latent mean, in the noise of finitely many cells, and cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.prediction import Posterior
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import (
    Additive,
    Gaussian,
    Interaction,
    Mixture,
    ModulatedGraph,
    NegativeBinomial,
    NoGraph,
    PerturbedVAE,
)

FitOf = Callable[..., Fit]
BASE = PerturbedVAE(background=3, hidden=4, penetrance=Mixture(centre=0.75, strength=8.0))
MODELS = {
    "default": BASE,
    "counts": BASE.replace(likelihood=NegativeBinomial()),
    "modulated": BASE.replace(graph=ModulatedGraph(density=0.5, modulation=0.3, coupling=0.1)),
    "additive": BASE.replace(
        composition=Additive(), graph=NoGraph(), likelihood=Gaussian(link="identity"),
        interaction=Interaction(width=0.0, width_spread=0.0, outside=0.0, surprise_spread=0.0, stretch=0.0)),
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> FitOf:
    """Fits of one epoch whose effects are made larger; half of the cells of T01 escape, hardly any of T02."""
    done: dict[str, Fit] = {}

    def make(model: str = "default") -> Fit:
        if model not in done:
            world = simulate("default", seed=1, targets=6, doubles=3, controls=80, cells_per_condition=20, genes=25, batches=2,
                             batch_effect=0.4, background_loading_size=0.6)  # fmt: skip
            screen = Screen.from_anndata(world.adata, "condition", batch_key="batch")
            settings = FitSettings(epochs=1, batch_size=200, validation=0.0)
            one = fit(MODELS[model], screen, settings=settings, device="cpu", progress=False, known_targets=("X1", "X2"))
            state = {name: value.clone() for name, value in one.state.items()}
            state["guide.family.loc.penetrance"][:2, 0] = torch.tensor([0.0, 4.0])  # on the logit scale
            state["guide.family.loc.effects"] *= 2
            state["guide.family.log_scale.noise"].fill_(-20.0)  # moments are tabulated at the centre of the noise
            done[model] = replace(one, trained=(replace(one.trained[0], state=state),))
        return done[model]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make


def brute(posterior: Posterior, row: int, draw: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and the cells themselves, all of one draw."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        x = posterior.recipe.cells(row, np.full(cells, draw), generator).double().numpy()
    return x.mean(0), x.var(0, ddof=1), x


@pytest.mark.parametrize("model", list(MODELS))
def test_latent_mean_is_the_mean_of_new_cells(model: str, fitted: FitOf) -> None:
    posterior = fitted(model).predict(["T01", "T01+T03", "T02+T04"], draws=2, seed=6)
    latent = posterior.draws("latent_mean").astype(np.float64)
    for row in range(3):
        mean, variance, _ = brute(posterior, row, 1, 20_000)
        # quadrature and a tabulated link: within 0.02
        assert (np.abs(mean - latent[1, row]) < 4.5 * np.sqrt(variance / 20_000) + 0.02).all()


def test_it_lies_between_control_and_cells_that_all_respond(fitted: FitOf) -> None:
    posterior = fitted("additive").predict(["T01", "control"], draws=8, seed=2)
    same = posterior.recipe.asking(own_batches=torch.zeros_like(posterior.recipe.own_batches))
    latent = replace(posterior, recipe=same).draws("latent_mean").astype(np.float64)
    full = replace(posterior, recipe=same.asking(escape=False)).draws("latent_mean").astype(np.float64)
    rho = torch.stack([d.shared["penetrance"][0] for d in posterior.recipe.draws]).double().numpy()
    np.testing.assert_allclose(latent[:, 0], rho * full[:, 0] + (1 - rho) * latent[:, 1], atol=1e-5)
    np.testing.assert_array_equal(latent[:, 1], full[:, 1])
    assert 0.02 < rho.min() < rho.max() < 0.98 and np.abs(full[:, 0] - latent[:, 1]).max() > 0.5


@pytest.mark.parametrize("model", ["default", "counts"])
@pytest.mark.parametrize("n", [10, 100])
def test_finite_cell_noise_is_that_of_n_cells_of_the_mixture(n: int, model: str, fitted: FitOf) -> None:
    posterior = fitted(model).predict(["T01"], draws=1, n_cells=n, seed=1)
    _, variance, _ = brute(posterior, 0, 0, 20_000)
    many = replace(posterior, recipe=replace(posterior.recipe, draws=posterior.recipe.draws * 600))
    noise = (many.draws("measured_pseudobulk") - many.draws("latent_mean"))[:, 0].astype(np.float64)
    ratio = noise.var(0, ddof=1) / (variance / n)
    # 600 repetitions: sd of a log variance 0.06, and escaping cells make all genes move together
    assert np.abs(np.log(ratio)).max() < 4.5 * 0.07
    assert (np.abs(noise.mean(0)) < 4.5 * np.sqrt(variance / n / 600) + 0.02).all()
    _, within, _ = brute(replace(posterior, recipe=posterior.recipe.asking(escape=False)), 0, 0, 20_000)
    assert (variance / within).max() > 1.1  # some genes do differ between the two kinds


def test_genes_move_together_with_the_number_of_cells_that_respond(fitted: FitOf) -> None:
    """Covariance between genes of a pseudobulk's noise against that of many simulated pseudobulks' cells."""
    posterior = fitted("additive").predict(["T01"], draws=1, n_cells=100, seed=1)
    _, _, x = brute(posterior, 0, 0, 40_000)
    many = replace(posterior, recipe=replace(posterior.recipe, draws=posterior.recipe.draws * 3000))
    noise = (many.draws("measured_pseudobulk") - many.draws("latent_mean"))[:, 0].astype(np.float64)
    with torch.no_grad():
        kinds = posterior.recipe.kinds(0)
        gap, rho = (kinds[0].eta - kinds[1].eta)[0].double().numpy(), float(kinds[0].rate)
    axis = gap / np.linalg.norm(gap)
    expected = (x @ axis).var()  # along the effect, where the mixture is widest
    assert (100 * (noise @ axis).var()) == pytest.approx(expected, rel=5 * (2 / 3000) ** 0.5 + 0.1)
    assert rho * (1 - rho) * gap @ gap > 0.3 * expected


def test_new_cells_are_of_two_kinds_at_the_rate(fitted: FitOf) -> None:
    posterior = fitted("additive").predict(["T01", "control"], draws=1, seed=3)
    with torch.no_grad():
        kinds = posterior.recipe.kinds(0)
    axis = (kinds[0].eta - kinds[1].eta)[0].numpy()
    ends = [float(k.eta[0].numpy() @ axis) for k in kinds]
    _, _, x = brute(posterior, 0, 0, 5000)
    place = (x @ axis - ends[1]) / (ends[0] - ends[1])  # 0 escaped, 1 responding, on average
    rho = float(kinds[0].rate)
    assert place.mean() == pytest.approx(rho, abs=4.5 * place.std() / 5000**0.5)
    for k, other in enumerate(kinds):  # each kind has the moments that the recipe states for it
        assert np.isfinite(other.variance.numpy()).all() and other.purpose == ("", " escaped")[k]


def test_control_and_a_target_that_hardly_escapes_are_as_without(fitted: FitOf) -> None:
    fit_ = fitted()
    posterior = fit_.predict(["control", "T01", "T02"], draws=4, n_cells=40, seed=1)
    full = replace(posterior, recipe=posterior.recipe.asking(escape=False))
    for kind in ("latent_mean", "measured_pseudobulk"):
        on, off = posterior.draws(kind), full.draws(kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(on[:, 0], off[:, 0])
        assert np.abs(on[:, 1] - off[:, 1]).max() > 0.1
    gap = np.abs(posterior.draws("latent_mean") - full.draws("latent_mean")).mean((0, 2))
    assert gap[2] < 0.1 * gap[1]


def test_an_untrained_target_draws_its_rate_from_the_prior(fitted: FitOf) -> None:
    posterior = fitted().predict(["X1", "T01+X2"], draws=400, seed=0)
    rho = torch.stack([d.shared["penetrance"] for d in posterior.recipe.draws])[..., 0].double().numpy()
    assert rho.shape == (400, 8)
    for column in (6, 7):
        assert stats.kstest(rho[:, column], stats.beta(6.0, 2.0).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(rho[:, 6], rho[:, 7])[0, 1]) < 0.2
    with torch.no_grad():
        rates = [posterior.recipe.rate(row)[:, 0].double().numpy() for row in range(2)]
    np.testing.assert_allclose(rates[0], rho[:, 6], rtol=1e-6)
    np.testing.assert_allclose(rates[1], np.minimum(rho[:, 0], rho[:, 7]), rtol=1e-6)


def test_draws_do_not_depend_on_what_else_is_asked(fitted: FitOf) -> None:
    asked = ["control", "T01", "T01+T02", "T03+T05"]
    counts = {"control": 40, "T01": 12, "T01+T02": 40, "T03+T05": 50}
    whole = fitted().predict(asked, draws=5, n_cells=counts, seed=4)
    part = fitted().predict(["X1", *asked[::-1][:3]], draws=5, n_cells=counts | {"X1": 9}, seed=4)
    for kind in ("latent_mean", "measured_pseudobulk"):
        one, other = (p.draws(kind)[:, [p.conditions.index(n) for n in asked[1:]]] for p in (whole, part))  # type: ignore[arg-type]
        np.testing.assert_array_equal(one, other)


def test_contrast_and_interaction_are_of_the_same_means(fitted: FitOf) -> None:
    posterior = fitted("additive").predict(["T01+T03", "T01", "T03", "control"], draws=6, seed=2)
    latent = posterior.draws("latent_mean")
    np.testing.assert_array_equal(posterior.contrast("T01", "T03").draws, latent[:, 1] - latent[:, 2])
    same = posterior.recipe.asking(own_batches=torch.zeros_like(posterior.recipe.own_batches))
    means = replace(posterior, recipe=same).draws("latent_mean").astype(np.float64)
    measured = means[:, 0] - means[:, 1] - means[:, 2] + means[:, 3]
    found = replace(posterior, recipe=same).interaction("T01+T03").draws
    np.testing.assert_allclose(found, measured, atol=3e-5)
    # escaping alone makes a pair of an additive model less than additive; among cells that respond it is additive
    assert np.abs(found).max() > 0.1
    assert np.abs(posterior.interaction("T01+T03", responding=True).draws).max() < 3e-5
