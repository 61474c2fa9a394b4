"""Predictions: joint draws that nothing else asked can move, honest finite-cell noise, and exact identities."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from pvae_pyro.errors import InputError
from pvae_pyro.inference import Fit
from pvae_pyro.prediction import Posterior
from pvae_pyro.prediction.recipe import FEW_CELLS, ConditionNoise, Recipe
from pvae_pyro.story.latents import propagate

FitOf = Callable[..., Fit]
KINDS = ("latent_mean", "measured_pseudobulk")
ASKED = ("control", "T01", "T02", "T01+T02", "T03+T05", "T01+T02+T06", "T04@0.5")


def both(posterior: Posterior, names: Sequence[str]) -> np.ndarray:
    """Draws of both kinds for some of the predicted conditions, (kinds, draws, conditions, genes)."""
    rows = [posterior.conditions.index(name) for name in names]
    return np.stack([posterior.draws(kind)[:, rows] for kind in KINDS])  # type: ignore[arg-type]


def untrained_pair(fit: Fit) -> str:
    names = [f"T0{i}+T0{j}" for i in range(1, 7) for j in range(i + 1, 7)]
    return next(name for name in names if name not in fit.conditions)


def trained_pair(fit: Fit) -> str:
    return next(name for name in fit.conditions if "+" in name)


@pytest.mark.parametrize("model", ["default", "counts", "modulated"])
def test_draws_do_not_depend_on_what_else_is_asked(model: str, fitted: FitOf) -> None:
    fit = fitted(model)
    asked = [*ASKED, trained_pair(fit)] if trained_pair(fit) not in ASKED else list(ASKED)
    whole = fit.predict(asked, draws=5, n_cells={n: 12 if n == "T02" else 40 for n in asked}, seed=4)
    torch.manual_seed(123)
    subsets = (asked[2:5], ["T05+T06", *asked[:1], "T02+T03", asked[3]], asked[::-1], [asked[3]])
    for subset in subsets[: 4 if model == "default" else 2]:
        part = fit.predict(subset, draws=5, n_cells={n: 12 if n == "T02" else 40 for n in subset}, seed=4)
        shared = [n for n in part.conditions if n in asked]
        np.testing.assert_array_equal(both(part, shared), both(whole, shared))
    other = fit.predict(asked[:2], draws=5, n_cells=40, seed=5)
    assert not np.array_equal(both(other, asked[:1]), both(whole, asked[:1]))


def test_draws_are_joint_over_conditions(fitted: FitOf) -> None:
    """In an additive model every draw of a pair is the sum of the singles' draws of the same number."""
    fit = fitted("additive", singles=True)
    drawn = fit.predict(["T01", "T02", "T01+T02", "control"], draws=20, seed=1)
    latent = own_batches_removed(drawn).astype(np.float64)
    np.testing.assert_allclose(latent[:, 2], latent[:, 0] + latent[:, 1] - latent[:, 3], atol=2e-5)
    assert latent.std(0).min() > 1e-4
    # shuffled draws do not add up: they are joint, not only equal on average
    broken = latent[:, 0] + latent[::-1, 1] - latent[:, 3]
    assert np.abs(latent[:, 2] - broken).max() > 1e-2


def own_batches_removed(posterior: Posterior) -> np.ndarray:
    """Latent means with every condition at the screen's common batch shares, as for conditions never measured."""
    recipe = replace(posterior.recipe, own_batches=torch.zeros_like(posterior.recipe.own_batches))
    return replace(posterior, recipe=recipe).draws("latent_mean")


def test_the_order_of_targets_never_matters(fitted: FitOf) -> None:
    fit = fitted()
    one, other = (fit.predict([name, "T06"], draws=4, seed=2) for name in ("T05+T01", "T01+T05"))
    assert one.conditions == other.conditions == ("T01+T05", "T06")
    np.testing.assert_array_equal(one.draws(), other.draws())
    np.testing.assert_array_equal(one.interaction("T05+T01").draws, other.interaction("T01+T05").draws)
    np.testing.assert_array_equal(one.new_cells("T05+T01", 3), other.new_cells("T01+T05", 3))


@pytest.mark.parametrize("model", ["default", "modulated"])
def test_an_untrained_target_is_told_and_moves_nothing(
    model: str, fitted: FitOf, caplog: pytest.LogCaptureFixture
) -> None:
    fit, known = fitted(model), ["T01", "T02+T05", trained_pair(fitted(model))]
    with caplog.at_level(logging.WARNING, "pvae_pyro"):
        alone = fit.predict(known, draws=10, seed=3)
        assert not caplog.records
        beside = fit.predict([*known, "X1", "T01+X2"], draws=10, seed=3)
    assert ["X1, X2" in r.getMessage() for r in caplog.records] == [True]
    np.testing.assert_array_equal(both(beside, known), both(alone, known))
    other = fit.predict(["T01+X2"], draws=10, seed=3)  # nor does one untrained target move another
    np.testing.assert_array_equal(both(other, ["T01+X2"]), both(beside, ["T01+X2"]))
    assert beside.seen_targets.tolist() == [1, 2, 2, 0, 1] and beside.n_targets.tolist() == [1, 2, 2, 1, 2]


def test_untrained_targets_have_the_moments_of_the_prior(fitted: FitOf) -> None:
    fit = fitted()
    posterior = fit.predict(["X1", "T01", "control"], draws=150, seed=0)
    recipe = posterior.recipe
    w = torch.stack([d.shared["effects"] for d in recipe.draws])[:, -2:]  # (draws, X1 and X2, latents)
    assert w.shape[:2] == (150, 2) and len(recipe.draws[0].shared["effects"]) == 8
    # a target of its own share a of open latents, redrawn for every draw and target with mean alpha
    rate = torch.sigmoid(fit.state["guide.family.loc.inclusion"]) * torch.sigmoid(fit.state["guide.family.loc.acting"])
    closed = (w == 0).double().mean((0, 1))
    spread = fit.state["guide.family.log_scale.inclusion"].exp() / 4  # of pi, which is redrawn in every draw
    assert ((closed - (1 - rate)).abs() < 4.5 * (0.25 / 300) ** 0.5 + spread**2).all()
    tau = fit.state["guide.family.loc.effect_scale"].exp()
    found = torch.stack([w[..., k][w[..., k] != 0].std() for k in range(len(tau))])
    n_open = (w != 0).sum((0, 1)).min()
    assert (found / tau - 1).abs().max() < 4.5 / float(2 * n_open) ** 0.5 + 0.02
    # it knows no direction, and is less sure than of a target that it has seen
    latent = posterior.draws("latent_mean").astype(np.float64)
    new, seen = latent[:, 0] - latent[:, 2], latent[:, 1] - latent[:, 2]
    assert (np.abs(np.median(new, 0)) < np.abs(new).mean(0)).all()
    # the sd of 150 draws has a relative error of 6 %, a ratio of two 8 %: apart by 4.5 of these in every single gene's mean
    assert new.std(0).mean() > (1 + 4.5 * 0.08) * seen.std(0).mean()


def brute_variance(posterior: Posterior, row: int, draw: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over many simulated cells of one draw."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        x = posterior.recipe.cells(row, np.full(cells, draw), generator).double().numpy()
    return x.mean(0), x.var(0, ddof=1)


@pytest.mark.parametrize("model", ["default", "counts"])
@pytest.mark.parametrize("n", [10, 100])
def test_finite_cell_noise_is_that_of_n_simulated_cells(n: int, model: str, fitted: FitOf) -> None:
    """Variance of (measured - latent) over repetitions, all of the same draw of the globals, against V / n."""
    assert 10 < FEW_CELLS < 100  # so that both ways are tested
    posterior = fitted(model).predict(["T01"], draws=1, n_cells=n, seed=1)
    mean, variance = brute_variance(posterior, 0, 0, 20_000)
    repeats = 400
    recipe = posterior.recipe
    # the same globals, the noise of the condition anew in each repetition
    many = replace(recipe, draws=recipe.draws * repeats)
    latent, measured = (replace(posterior, recipe=many).draws(kind)[:, 0].astype(np.float64) for kind in KINDS)  # type: ignore[arg-type]
    noise = measured - latent
    found = noise.var(0, ddof=1)
    # relative Monte Carlo error of a variance from 400 repetitions is sqrt(2 / 399) = 7 %; 20,000 cells add 1 to 3 %
    ratio = found / (variance / n)
    assert np.all(np.abs(np.log(ratio)) < 4.5 * 0.08)
    assert abs(np.log(ratio).mean()) < 4 * 0.08 / len(ratio) ** 0.5 + 0.05
    error = np.sqrt(variance / n / repeats + variance / 20_000)
    assert (np.abs(noise.mean(0)) < 4.5 * error + 0.01).all()
    assert mean.shape == (25,)


def test_genes_share_the_programs_part_of_the_noise(fitted: FitOf) -> None:
    """Covariance between genes of the noise of a pseudobulk: slope_g slope_h (programs' programs)_gh / n, and V_g / n."""
    posterior = fitted().predict(["T01"], draws=1, n_cells=100, seed=1)
    recipe = posterior.recipe
    many = replace(posterior, recipe=replace(recipe, draws=recipe.draws * 3000))
    noise = (many.draws("measured_pseudobulk") - many.draws("latent_mean"))[:, 0].astype(np.float64)
    with torch.no_grad():
        eta, spread, _ = recipe.predictor(0)
        _, variance = recipe.moments(eta, spread, recipe.draws[0].shared["noise"])
        story = recipe.guide.story
        shared = story.model.likelihood.slope(eta, story.level)[0] * recipe.pushed(0).programs[0]
        expected = (shared.T @ shared).double().numpy()
    np.fill_diagonal(expected, variance[0].double().numpy())
    error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / 3000)
    assert (np.abs(100 * np.cov(noise.T) - expected) < 4.5 * error + 1e-6).all()
    assert (np.abs(expected - np.diag(np.diag(expected))) > 4.5 * error).sum() > 20  # there is something to share


@pytest.mark.parametrize("model", ["default", "counts", "modulated"])
def test_latent_mean_is_the_mean_of_new_cells(model: str, fitted: FitOf) -> None:
    posterior = fitted(model).predict(["T01+T02", "T03"], draws=3, seed=6)
    latent = posterior.draws("latent_mean").astype(np.float64)
    for row in range(2):
        for draw in (0, 2):
            mean, variance = brute_variance(posterior, row, draw, 20_000)
            # seven nodes and a tabulated link: within 0.02, for the noise of this draw
            recipe = posterior.recipe
            with torch.no_grad():
                noise = recipe.draws[draw].shared["noise"]
                own = fitted(model).model.likelihood.moments(noise, recipe.library, recipe.guide.story.level)
            exact = replace(posterior, recipe=replace(recipe, moments=own)).draws("latent_mean")[draw, row]
            assert (np.abs(mean - exact) < 4.5 * np.sqrt(variance / 20_000) + 0.02).all()
            # tables are made once, at the centre of the noise: nearer than the cells' own spread by far
            assert (np.abs(latent[draw, row] - exact) < 0.1 * np.sqrt(variance)).all()
    new = posterior.new_cells("T03", 50, seed=1)
    assert new.shape == (50, 25) and new.dtype == np.float32
    np.testing.assert_array_equal(new, posterior.new_cells("T03", 50, seed=1))
    assert not np.array_equal(new, posterior.new_cells("T03", 50, seed=2))


def test_contrast_is_the_difference_of_latent_draws(fitted: FitOf) -> None:
    posterior = fitted().predict(list(ASKED), draws=9, seed=2)
    latent = posterior.draws("latent_mean")
    found = posterior.contrast("T02+T01", "T01")
    np.testing.assert_array_equal(found.draws, latent[:, 3] - latent[:, 1])
    assert found.name == "T01+T02 - T01" and found.genes.tolist() == posterior.genes.tolist()
    np.testing.assert_allclose(found.mean, found.draws.mean(0))
    low, high = found.interval(0.8)
    np.testing.assert_allclose(low, np.quantile(found.draws, 0.1, axis=0), rtol=1e-5)  # float32
    np.testing.assert_allclose(high, np.quantile(found.draws, 0.9, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.probability_above(0.05), (np.abs(found.draws) > 0.05).mean(0))
    below = (found.draws < -0.05).mean(0)
    np.testing.assert_allclose(found.probability_positive(0.05) + below, found.probability_above(0.05), atol=1e-12)
    assert not posterior.contrast("T01", "T01").draws.any()
    np.testing.assert_array_equal(posterior.contrast("T01", "T02").draws, -posterior.contrast("T02", "T01").draws)


def test_an_additive_model_has_no_interaction(fitted: FitOf) -> None:
    fit = fitted("additive", singles=True)
    posterior = fit.predict(["T01+T02", "T01+T04+T06", "T03@0.5+T05"], draws=20, seed=2)
    shift = np.abs(posterior.draws("latent_mean")[:, 0] - fit.predict(["control"], draws=20, seed=2).draws("latent_mean")[:, 0])
    for name in posterior.conditions:
        found = posterior.interaction(name)
        assert np.abs(found.draws).max() < 2e-5 < 1e-3 * shift.max()
        assert "direction" in found.note and "prior alone" in found.note
    trained = fitted("additive")  # nor has a pair of its training one, whatever its batches
    pair = trained.predict([trained_pair(trained)], draws=20, seed=2)
    assert np.abs(pair.interaction(trained_pair(trained)).draws).max() < 2e-5


def test_interaction_of_a_trained_pair_is_its_eta_and_residual_draw_by_draw(fitted: FitOf) -> None:
    """With an identity link nothing else can be in it: neither the batches nor the noise of its parts."""
    fit = fitted("linear")
    name = trained_pair(fit)
    posterior = fit.predict([name], draws=10, seed=2)
    found = posterior.interaction(name)
    assert "trained" in found.note
    recipe, story = posterior.recipe, posterior.recipe.guide.story
    which = [fit.conditions[row] for row in story.combinations].index(name)
    for number, draw in enumerate(recipe.draws):
        eta = draw.trained_shift[which] - story.compose(draw.shared, recipe.design)[0]
        graph = story.edges(draw.shared, recipe.design)["graph"]
        expected = propagate(eta, graph) @ story.decoder.responsive + draw.trained_residual[which]
        np.testing.assert_allclose(found.draws[number][fit.active], expected.detach().numpy(), atol=2e-5)
    assert np.abs(found.draws).max() > 1e-2


def test_interaction_is_combination_minus_shifts_of_its_parts(fitted: FitOf) -> None:
    fit = fitted(singles=True)
    asked = ["T01+T02", "T01", "T02", "control"]
    posterior = fit.predict(asked, draws=8, seed=2)
    latent = own_batches_removed(posterior)
    expected = latent[:, 0] - latent[:, 1] - latent[:, 2] + latent[:, 3]
    found = posterior.interaction("T01+T02")
    np.testing.assert_allclose(found.draws, expected, atol=2e-5)
    assert np.abs(found.draws).max() > 1e-2 and "composition says" in found.note
    with pytest.raises(InputError, match="fewer than two"):
        posterior.interaction("T01")


@pytest.mark.parametrize("kind", KINDS)
def test_summary_is_that_of_the_draws(kind: str, fitted: FitOf) -> None:
    posterior = fitted().predict(list(ASKED), draws=30, seed=2)
    drawn, summary = posterior.draws(kind), posterior.summary(kind)  # type: ignore[arg-type]
    np.testing.assert_allclose(summary.mean, drawn.mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.sd, drawn.std(0, ddof=1), rtol=1e-4, atol=1e-6)
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        np.testing.assert_allclose(summary.quantile(level), np.quantile(drawn, level, axis=0), rtol=1e-5)
    with pytest.raises(InputError, match="0.3"):
        summary.quantile(0.3)
    one = fitted().predict(["T01"], draws=1)
    assert not one.summary().sd.any() and one.draws().shape == (1, 1, 25)


def test_blocks_cover_every_condition_once_whatever_their_size(fitted: FitOf, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fitted()
    names = [f"T0{i}+T0{j}" for i in range(1, 7) for j in range(i + 1, 7)] + ["control"]
    posterior = fit.predict(names, draws=4, n_cells=40)
    expected = posterior.draws()
    original = Recipe.block
    sizes: list[int] = []

    def seen(self: Recipe, chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(chosen.stop - chosen.start)
        return original(self, chosen)

    monkeypatch.setattr(Recipe, "block", seen)
    monkeypatch.setattr("pvae_pyro.prediction.recipe.np.clip", lambda value, low, high: 3)
    rows = [i for chosen, _, measured in posterior.recipe.blocks() for i in range(16)[chosen][: measured.shape[1]]]
    assert rows == list(range(16)) and sizes == [3, 3, 3, 3, 3, 1]
    np.testing.assert_array_equal(posterior.draws(), expected)


def test_noise_of_a_condition_is_standard_and_its_own(fitted: FitOf) -> None:
    one, other = (ConditionNoise(name, 0, 2000).normal("cells", 3) for name in ("T01", "T02"))
    for drawn in (one, other):
        assert drawn.mean(0).abs().max() < 4 / 2000**0.5 and (drawn.std(0) - 1).abs().max() < 4 / 4000**0.5
    assert torch.corrcoef(torch.cat([one, other], 1).T).fill_diagonal_(0).abs().max() < 4.5 / 2000**0.5
    assert torch.equal(one, ConditionNoise("T01", 0, 2000).normal("cells", 3))


def test_numbers_of_cells_default_to_the_condition_s_own_or_the_median(fitted: FitOf) -> None:
    fit = fitted()
    own = dict(zip(fit.training.conditions, fit.training.n_cells.tolist(), strict=True))
    new = untrained_pair(fit)
    posterior = fit.predict(["T01", new, "control"], draws=2)
    median = int(np.median([n for name, n in own.items() if name != "control"]))
    assert posterior.n_cells.tolist() == [own["T01"], median, own["control"]]
    assert fit.predict(["T02+T01"], draws=2, n_cells={"T01+T02": 7}).n_cells.tolist() == [7]
    with pytest.raises(InputError, match="T03"):
        fit.predict(["T01", "T03"], draws=2, n_cells={"T01": 5})
    for wrong in (0, -3, 2.5):
        with pytest.raises(InputError, match="n_cells"):
            fit.predict(["T01"], draws=2, n_cells=wrong)  # type: ignore[arg-type]


def test_what_cannot_be_predicted_is_refused(fitted: FitOf) -> None:
    fit = fitted()
    for draws in (0, -1, 2.5):
        with pytest.raises(InputError, match="draws"):
            fit.predict(["T01"], draws=draws)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed"):
        fit.predict(["T01"], draws=2, seed=-1)
    with pytest.raises(InputError, match="no condition"):
        fit.predict([], draws=2)
    with pytest.raises(InputError, match="T99"):
        fit.predict(["T01+T99"], draws=2)
    with pytest.raises(InputError, match="T01\\+T02"):
        fit.predict(["T01+T02", "T02+T01"], draws=2)
    posterior = fit.predict(["T01"], draws=2)
    with pytest.raises(InputError, match="T02"):
        posterior.contrast("T01", "T02")
    with pytest.raises(InputError, match="T02"):
        posterior.new_cells("T02", 1)
    with pytest.raises(InputError, match="at least 1"):
        posterior.new_cells("T01", 0)
    with pytest.raises(InputError, match="kind"):
        posterior.draws("cells")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kind"):
        posterior.summary("new_cell")  # type: ignore[arg-type]
    for level in (-0.1, 0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            fit.predict(["T01", "T02"], draws=2).contrast("T01", "T02").interval(level)
