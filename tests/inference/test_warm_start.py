"""The closed-form start against dense linear algebra, planted structure and the truth of simulated worlds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

from pvae_pyro.guides import Amortized, AmortizedGuide
from pvae_pyro.inference import FitSettings, fit
from pvae_pyro.inference.covariance import CellVariation, cell_variation
from pvae_pyro.inference.rotation import varimax
from pvae_pyro.inference.starting import apply_start
from pvae_pyro.inference.warm_start import Start, closed_form
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import SimulatedScreen, simulate
from pvae_pyro.story import (
    Additive,
    Cells,
    Gaussian,
    NegativeBinomial,
    NormalEffects,
    PerturbedVAE,
    Story,
    StudentT,
)
from pvae_pyro.story.effects.mixture import spike_slab_fit

WorldOf, ScreenOf = Callable[..., SimulatedScreen], Callable[..., Screen]
LINEAR = Gaussian(link="identity")


def cells(seed: int = 0, n: int = 300, genes: int = 30) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Sparse expression with programs, four unbalanced conditions, three batches; the last gene never varies."""
    rng = np.random.default_rng(seed)
    condition, batch = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]), rng.choice(3, n, p=[0.5, 0.4, 0.1])
    x = rng.normal(size=(n, 3)) @ rng.normal(size=(3, genes)) + rng.normal(size=(n, genes)) * rng.uniform(0.3, 2, genes)
    x += rng.normal(size=(4, genes))[condition] + rng.normal(size=(3, genes))[batch]
    x[rng.random((n, genes)) < 0.5] = 0
    x[:, -1] = 0
    return sp.csr_matrix(x), condition, batch


def test_cell_variation_is_dense_least_squares_and_an_eigendecomposition() -> None:
    x, condition, batch = cells()
    n, genes, k = *x.shape, 5
    found = cell_variation(x, condition, batch, k)
    design = np.hstack([np.eye(4)[condition], np.eye(3)[batch][:, 1:]])
    coefficients, *_ = np.linalg.lstsq(design, x.toarray(), rcond=None)
    effects = np.vstack([np.zeros(genes), coefficients[4:]])
    share = np.bincount(batch) / n
    np.testing.assert_allclose(found.batch_effects, effects - share @ effects, atol=1e-8)
    np.testing.assert_allclose(found.means, coefficients[:4] + share @ effects, atol=1e-8)
    np.testing.assert_allclose(share @ found.batch_effects, 0, atol=1e-12)
    residual = x.toarray() - design @ coefficients
    sd = np.sqrt((residual**2).sum(0) / (n - 6))
    np.testing.assert_allclose(found.sd[:-1], sd[:-1], rtol=1e-7)
    assert found.sd[-1] == found.sd[:-1].min()
    correlation = (residual / found.sd).T @ (residual / found.sd) / (n - 6)
    values, vectors = np.linalg.eigh(correlation)
    np.testing.assert_allclose(found.values, values[::-1][:k], rtol=1e-7)
    np.testing.assert_allclose(found.directions @ found.directions.T, vectors[:, -k:] @ vectors[:, -k:].T, atol=1e-6)
    np.testing.assert_allclose(found.rest, values[:-k].sum() / (genes - k), rtol=1e-6)


@pytest.mark.parametrize("absent", [0, 1, 3])
def test_a_batch_without_cells_counts_as_average(absent: int) -> None:
    """The only cells of a batch may all be held out for validation."""
    x, condition, batch = cells()
    shifted = np.where(batch >= absent, batch + 1, batch)
    found, plain = cell_variation(x, condition, shifted, 4, 4), cell_variation(x, condition, batch, 4)
    assert found.batch_effects.shape == (4, 30) and not found.batch_effects[absent].any()
    np.testing.assert_array_equal(np.delete(found.batch_effects, absent, axis=0), plain.batch_effects)
    for name in ("means", "sd", "directions", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_cells_are_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    x, condition, batch = cells()
    expected = cell_variation(x, condition, batch, 4)

    def refuse(kind: type) -> None:
        for name in ("toarray", "todense"):
            original = getattr(kind, name)

            def checked(self: sp.csr_matrix, *a: object, _original: Callable[..., object] = original, **k: object) -> object:
                assert self.shape[0] != 300 or self.shape[1] < 10, "the cells were made dense"
                return _original(self, *a, **k)

            monkeypatch.setattr(kind, name, checked)

    for kind in (sp.csr_matrix, sp.csc_matrix, sp.coo_matrix):
        refuse(kind)
    again = cell_variation(x, condition, batch, 4)
    for name in ("means", "batch_effects", "sd", "directions", "values"):
        np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))


def model_covariance(v: CellVariation) -> np.ndarray:
    along = v.directions @ np.diag(v.values) @ v.directions.T
    return np.diag(v.sd) @ (along + v.rest * (np.eye(len(v.sd)) - v.directions @ v.directions.T)) @ np.diag(v.sd)


def test_whitening_gives_unit_covariance_and_has_an_inverse() -> None:
    v = cell_variation(*cells(1), 4)
    rng = np.random.default_rng(2)
    shifts = rng.normal(size=(6, 30))
    np.testing.assert_allclose(v.unwhiten(v.whiten(shifts)), shifts, atol=1e-10)
    root = v.whiten(np.eye(30))  # rows are whitened: shifts @ root
    np.testing.assert_allclose(v.whiten(shifts), shifts @ root, atol=1e-10)
    np.testing.assert_allclose(root.T @ model_covariance(v) @ root, np.eye(30), atol=1e-9)


def test_shares_of_variance_follow_from_the_covariance() -> None:
    v = cell_variation(*cells(3), 4)
    own = v.sd**2 * (1 - v.common)
    total = np.diag(model_covariance(v) - v.rest * np.diag(v.sd**2))
    np.testing.assert_allclose(v.common, np.minimum(total / v.sd**2, 0.9), atol=1e-10)
    axes = np.linalg.qr(np.random.default_rng(4).normal(size=(30, 3)))[0].T
    root = v.whiten(np.eye(30))
    np.testing.assert_allclose(v.shared_variance(axes), 1 - np.diag(axes @ root.T @ np.diag(own) @ root @ axes.T), atol=1e-9)
    outside = v.background_outside(axes)
    np.testing.assert_allclose(v.whiten(outside) @ axes.T, 0, atol=1e-9)
    # on genes orthogonal to the axes nothing is taken out
    free = np.eye(30) - axes.T @ axes
    loadings = (v.directions * np.sqrt(np.maximum(v.values - v.rest, 0))).T * v.sd
    np.testing.assert_allclose(v.whiten(outside) @ free, v.whiten(loadings) @ free, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_varimax_is_a_rotation_that_finds_a_sparse_basis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    planted = rng.normal(size=(600, 5)) * (rng.random((600, 5)) < 0.2)
    turned = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    rotation = varimax(planted @ turned)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(5), atol=1e-10)
    back = turned @ rotation  # a signed permutation, if the basis was found
    assert (np.abs(back).max(0) > 0.97).all() and sorted(np.abs(back).argmax(0)) == list(range(5))

    def criterion(scores: np.ndarray) -> float:
        return float((scores**4).mean() - ((scores**2).mean(0) ** 2).mean())

    assert criterion(planted @ turned @ rotation) > 1.2 * criterion(planted @ turned)
    np.testing.assert_allclose(varimax(planted[:, :1]), [[1.0]])


def test_the_spike_and_slab_fit_recovers_what_is_planted() -> None:
    rng = np.random.default_rng(5)
    n, slab, rate = 3000, np.array([1.0, 0.5, 2.0]), np.array([0.2, 0.6, 0.4])
    gates = rng.random((n, 3)) < rate
    variance = rng.uniform(0.01, 0.09, size=(n, 3))
    scores = np.where(gates, rng.normal(size=(n, 3)) * np.sqrt(slab), 0) + rng.normal(size=(n, 3)) * np.sqrt(variance)
    fitted = spike_slab_fit(torch.as_tensor(scores), torch.as_tensor(variance))
    member, found = fitted.member.numpy(), fitted.rate.numpy()
    # the likelihood's information on a rate is less than n gates' own: twice their error is allowed, four times over
    np.testing.assert_allclose(found, rate, atol=4 * 2 * np.sqrt(0.25 / n))
    for k in range(3):
        # probabilities mean what they say: open gates among those of similar probability
        for low in (0.1, 0.5, 0.9):
            chosen = (member[:, k] >= low) & (member[:, k] <= low + 0.1)
            error = np.sqrt(0.25 / max(chosen.sum(), 1))
            assert abs(gates[chosen, k].mean() - member[chosen, k].mean()) < 4 * error + 0.03
        assert gates[member[:, k] > 0.95, k].mean() > 0.9


def start_of(screen: Screen, model: PerturbedVAE) -> tuple[Start, Story, AmortizedGuide]:
    """The start, written into a story and a guide."""
    start = closed_form(model, screen, np.arange(screen.n_cells))
    torch.manual_seed(0)
    story = Story(model, torch.as_tensor(screen.design), screen.n_cells, len(screen.batches), screen.n_genes, start.rank)
    guide = Amortized().build(story)
    apply_start(start, story, guide)
    return start, story, guide


@pytest.mark.parametrize("likelihood", [LINEAR, Gaussian(), NegativeBinomial()], ids=["linear", "gaussian", "counts"])
def test_background_is_blind_to_shifts_along_the_responsive_loadings(likelihood: object, screen: ScreenOf) -> None:
    data = screen("default", genes=60)
    start, _, guide = start_of(data, PerturbedVAE(background=4, hidden=4, likelihood=likelihood))  # type: ignore[arg-type]
    n = len(start.responsive)
    x, zero = torch.rand(n, 60), torch.zeros(n, dtype=torch.long)
    shift = torch.as_tensor(start.responsive * start.slope, dtype=torch.float32)

    def where(moved: torch.Tensor) -> torch.Tensor:
        return guide.background(Cells(moved, moved, zero, zero, torch.ones(n)))[0].detach()

    response = (where(x + 10 * shift) - where(x)).abs().max()
    other = (where(x + 10 * torch.as_tensor(start.background[:1] * start.slope, dtype=torch.float32)) - where(x)).abs().max()
    assert response < 1e-4 < 1e-3 * other  # it does see its own programs
    with torch.no_grad():  # and whatever training makes of the encoder
        guide.gain_background.normal_()
        assert guide.correct_background.last is not None
        guide.correct_background.last.weight.normal_()
    assert (where(x + 10 * shift) - where(x)).abs().max() < 1e-3 * (where(x + 1) - where(x)).abs().max()


@pytest.mark.parametrize("link", ["identity", "softplus"])
def test_a_noise_that_is_no_sd_starts_at_the_variance_that_was_measured(link: str, screen: ScreenOf) -> None:
    """Student-t cells start as the Gaussian ones do, but for the unit of their noise; a part without a say gets the sd."""
    data = screen("default")
    rows = np.arange(data.n_cells)
    gaussian = closed_form(PerturbedVAE(background=3, likelihood=Gaussian(link=link)), data, rows)  # type: ignore[arg-type]
    part = StudentT(link=link, df=4.0, tails_from=1.0)  # type: ignore[arg-type]
    found = closed_form(PerturbedVAE(background=3, likelihood=part), data, rows)
    for name in ("unit", "intercept", "responsive", "background", "scores", "scale", "level"):
        np.testing.assert_allclose(getattr(found, name), getattr(gaussian, name), rtol=1e-9, atol=1e-12, err_msg=name)
    noise, level = torch.as_tensor(found.noise), torch.as_tensor(found.level)
    np.testing.assert_allclose(part.variance(noise, level).sqrt(), gaussian.noise, rtol=1e-9)
    assert (found.noise < 0.98 * gaussian.noise).any()

    class Silent(Gaussian):
        noise_of = None  # type: ignore[assignment]

    silent = closed_form(PerturbedVAE(background=3, likelihood=Silent(link=link)), data, rows)  # type: ignore[arg-type]
    np.testing.assert_array_equal(silent.noise, gaussian.noise)


def test_the_responsive_gain_is_the_regression_of_the_latents_on_the_cells(screen: ScreenOf) -> None:
    start, _, guide = start_of(screen(), PerturbedVAE(background=3, hidden=4, likelihood=LINEAR))
    loadings, genes = start.responsive * start.slope, start.responsive.shape[1]
    own = start.variation.sd**2 * (1 - start.variation.common)
    exact = np.linalg.solve(loadings.T @ loadings + np.diag(own), loadings.T)
    np.testing.assert_allclose(guide.gain_responsive.detach(), exact, rtol=1e-4, atol=1e-6)
    rng, n = np.random.default_rng(6), 50_000
    z = rng.normal(size=(n, len(loadings)))
    x = z @ loadings + rng.normal(size=(n, genes)) * np.sqrt(own)
    regression, *_ = np.linalg.lstsq(x, z, rcond=None)
    left = z - x @ regression
    error = np.sqrt(np.diag(np.linalg.inv(x.T @ x))[:, None] * left.var(0))
    assert (np.abs(guide.gain_responsive.detach().numpy() - regression) < 4.8 * error).all()
    # the scale is that of what the other latents leave open
    precision = (loadings / own) @ loadings.T + np.eye(len(loadings))
    np.testing.assert_allclose(guide.log_scale_responsive.detach().exp(), np.diag(precision) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize("likelihood", [LINEAR, Gaussian()], ids=["identity", "softplus"])
def test_the_start_is_nearer_to_the_truth_than_the_means_of_the_cells(
    likelihood: Gaussian, world: WorldOf, screen: ScreenOf
) -> None:
    size = {"targets": 30, "doubles": 0, "genes": 120, "controls": 300, "cells_per_condition": 15, "noise": 1.0}
    truth, data = world(**size).truth, screen(**size)
    assert truth.condition_mean is not None and truth.conditions == data.conditions
    model = PerturbedVAE(background=3, hidden=4, likelihood=likelihood)
    start = closed_form(model, data, np.arange(data.n_cells))
    raw = start.variation.means
    level = torch.as_tensor(start.level)
    predicted = likelihood.mean(torch.as_tensor(start.intercept[0] + start.scores @ start.responsive), level).numpy()
    control = likelihood.mean(torch.as_tensor(start.intercept[0]), level).numpy()
    target = truth.condition_mean[1:] - truth.condition_mean[0]
    errors = {name: ((m[1:] - c - target) ** 2).mean() for name, m, c in (("raw", raw, raw[0]), ("start", predicted, control))}
    assert errors["start"] < 0.5 * errors["raw"] < 0.5 * (target**2).mean()


def test_a_fit_without_an_epoch_predicts_by_its_start(world: WorldOf, screen: ScreenOf) -> None:
    size = {"targets": 20, "doubles": 0, "genes": 60, "controls": 300, "cells_per_condition": 15, "noise": 1.0}
    truth, data = world(**size).truth, screen(**size)
    one = fit(PerturbedVAE(background=3, hidden=4, likelihood=LINEAR, effects=NormalEffects()), data,
              settings=FitSettings(epochs=0, validation=0.0), device="cpu", progress=False)  # fmt: skip
    assert truth.condition_mean is not None
    found = one.predict(list(truth.conditions), draws=60).draws("latent_mean").mean(0)
    raw = one.training.mean
    target = truth.condition_mean[1:] - truth.condition_mean[0]
    errors = [((m[1:] - m[0] - target) ** 2).mean() for m in (found, raw)]
    assert errors[0] < 0.6 * errors[1]


def test_scaled_worlds_give_back_their_scale() -> None:
    """Twenty screens of pairs at 0.8 of the sum, few cells and controls: 90 % intervals, and no bias beyond their own noise."""
    model = PerturbedVAE(hidden=4, likelihood=LINEAR, composition=Additive(scale=1.0, scale_spread=0.3))
    errors = []
    for seed in range(20):
        data = simulate("scaled", seed=seed, targets=20, doubles=40, genes=80, controls=300, cells_per_condition=40).adata
        _, _, guide = start_of(Screen.from_anndata(data, "condition", batch_key="batch"), model)
        value, sd = guide.family.loc["composition_scale"], guide.family.log_scale["composition_scale"].exp()
        errors.append(float((value - np.log(0.8)) / sd))
    # fewer than 14 of 20 intervals inside has probability 0.2 %
    assert (np.abs(errors) < 1.645).sum() >= stats.binom.ppf(0.002, 20, 0.9)
    assert abs(np.mean(errors)) < 3 / np.sqrt(20)


def test_a_scaled_world_gives_back_its_scale_with_few_background_latents(screen: ScreenOf) -> None:
    """Whitening by 3 directions where cells vary in 9 leaves it some 0.04 too small: near, but not inside its intervals."""
    data = screen(preset="scaled", targets=20, doubles=40, genes=80, controls=300, cells_per_condition=40)
    model = PerturbedVAE(background=3, hidden=4, likelihood=LINEAR, composition=Additive(scale=1.0, scale_spread=0.3))
    _, _, guide = start_of(data, model)
    assert float(guide.family.loc["composition_scale"].exp().detach()) == pytest.approx(0.8, abs=0.08)
    fixed = model.replace(composition=Additive())
    assert "composition_scale" not in start_of(data, fixed)[2].family.loc


def test_the_start_repeats_and_keeps_asked_sizes(screen: ScreenOf) -> None:
    data = screen("default")
    model = PerturbedVAE(background=6, hidden=4, responsive=5)
    first, again = (closed_form(model, data, np.arange(data.n_cells)) for _ in range(2))
    for name in ("unit", "intercept", "centre", "responsive", "background", "scores", "score_sd", "scale", "noise", "slope"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert first.responsive.shape == (5, 40) and first.background.shape == (6, 40) and first.rank == 5
    assert first.intercept.shape == (3, 40) and first.scores.shape == (13, 5) and not first.scores[0].any()
    assert (first.noise > 0).all() and (first.scale > 0).all() and (first.unit > 0).all() and (first.unit <= 1).all()
    # latents come by decreasing effect, since edges of the graph point that way
    size = ((first.scores * first.unit) ** 2).sum(0)
    assert (np.diff(size) <= 1e-9).all()


def test_a_target_without_effects_keeps_its_gates_shut() -> None:
    """60 targets of which 20 do nothing; the rest move each of ten latents with probability 0.9. Truth of a_p pi_k is known."""
    rng = np.random.default_rng(1)
    gates = rng.random((60, 10)) < np.repeat([0.0, 0.9], [20, 40])[:, None]
    scores = torch.as_tensor(np.where(gates, rng.normal(0, 1.5, gates.shape), 0) + rng.normal(0, 0.5, gates.shape))
    noise = torch.full_like(scores, 0.25)
    alone, told = spike_slab_fit(scores, noise), spike_slab_fit(scores, noise, rows=(1.2, 2.8))
    # a null score beyond two sds, one in twenty, opens its gate where only latents have rates; else it takes three
    wrong = [float((one.member[:20] > 0.5).double().mean()) for one in (alone, told)]
    assert wrong[0] > 0.03 and wrong[1] < 0.0027 + 4 * (0.0027 / 200) ** 0.5
    brier = [float(((one.member.numpy() - gates) ** 2).mean()) for one in (alone, told)]
    assert brier[1] < 0.9 * brier[0]
    part = [float(spike_slab_fit(scores[rows], noise[rows], rows=(1.2, 2.8)).acting) for rows in (slice(20), slice(20, 60))]
    assert part[0] + 0.1 < float(told.acting) < part[1] - 0.1
    # nine gates of ten open in those that act: hardly a null row is told to have as many
    assert float((told.open_rows[20:] > told.open_rows[:20].T).double().mean()) > 0.98
    everything = told.open_rows + told.shut_rows
    torch.testing.assert_close(everything, torch.full_like(everything, 10.0))


def test_rates_follow_a_strong_prior_and_forget_a_weak_one() -> None:
    rng = np.random.default_rng(0)
    scores = torch.as_tensor(np.where(rng.random((400, 2)) < 0.6, rng.normal(0, 2.0, (400, 2)), 0) + rng.normal(0, 0.2, (400, 2)))
    noise = torch.full_like(scores, 0.04)
    found = {beta: spike_slab_fit(scores, noise, beta) for beta in ((1.0, 1.0), (2.0, 2.0), (1e6, 9e6))}
    # 240 of 400 are open: the standard error of the rate is 0.025
    assert (found[1.0, 1.0].rate - 0.6).abs().max() < 4 * 0.025
    assert (found[2.0, 2.0].rate - found[1.0, 1.0].rate).abs().max() < 0.01
    torch.testing.assert_close(found[1e6, 9e6].rate, torch.full((2,), 0.1, dtype=scores.dtype), atol=1e-3, rtol=0)
    assert (found[1e6, 9e6].member <= found[1.0, 1.0].member + 1e-9).all()  # a smaller rate opens no gate
