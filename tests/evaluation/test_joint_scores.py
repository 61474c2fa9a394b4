"""Variogram and interval score by brute force, what they promise, and CRPS and energy score beside Pyro's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro.ops.stats import crps_empirical, energy_score_empirical
from scipy.stats import norm

from pvae_pyro.evaluation.metrics import crps_normal, crps_samples, ends_draws, ends_normal
from pvae_pyro.evaluation.proper import energy_score, interval_score, variogram_genes, variogram_score

pytestmark = pytest.mark.filterwarnings("error")


def slow_variogram(draws: np.ndarray, y: np.ndarray, scale: np.ndarray, power: float) -> float:
    """The definition for one condition, pair by pair of genes, the noise of the mean taken off by pairs of draws.

    ``(a - m)^2 - v / S`` is the mean of ``(a - d_s)(a - d_t)`` over s != t, which is how it is computed here.
    """
    kept = [g for g in range(len(y)) if scale[g] > 0]
    terms = []
    for i, g in enumerate(kept):
        for h in kept[i + 1 :]:
            seen = abs(y[g] / scale[g] - y[h] / scale[h]) ** power
            gaps = [seen - abs(x[g] / scale[g] - x[h] / scale[h]) ** power for x in draws]
            products = [a * b for s, a in enumerate(gaps) for t, b in enumerate(gaps) if s != t]
            terms.append(sum(products) / len(products))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_variogram_score_is_its_sum_over_pairs(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    draws, y = rng.normal(size=(6, 2, 5)), rng.normal(size=(2, 5))
    scale = np.array([1.0, 0.5, 0.0, 2.0, 3.0])
    expected = [slow_variogram(draws[:, c], y[c], scale, power) for c in range(2)]
    np.testing.assert_allclose(variogram_score(draws, y, scale, power), expected, rtol=1e-10)
    monkeypatch.setattr("pvae_pyro.evaluation.proper._VARIOGRAM_BLOCK", 7)
    np.testing.assert_allclose(variogram_score(draws, y, scale, power), expected, rtol=1e-10)


def test_variogram_score_has_the_same_expectation_whatever_the_number_of_draws() -> None:
    rng = np.random.default_rng(1)
    repeats, genes = 1500, 6
    y = rng.normal(size=(repeats, genes))
    means, errors = [], []
    for count in (2, 8, 60):
        found = variogram_score(rng.normal(size=(count, repeats, genes)), y, np.ones(genes))
        means.append(found.mean())
        errors.append(found.std() / np.sqrt(repeats))
    # the variance of |X - X'|^(1/2) for X - X' ~ N(0, 2): E|d| - (E|d|^(1/2))^2
    d = np.abs(np.sqrt(2) * rng.normal(size=1_000_000))
    expected = d.mean() - np.sqrt(d).mean() ** 2
    for mean, error in zip(means, errors, strict=True):
        assert abs(mean - expected) < 4 * error + 1e-3


def profiles(rng: np.random.Generator, count: int, repeats: int, mix: np.ndarray) -> np.ndarray:
    """Normal profiles (count, repeats, genes) with covariance mix mix'."""
    return rng.normal(size=(count, repeats, len(mix))) @ mix.T


@pytest.mark.parametrize("wrong", ["independent", "wide", "narrow", "other means"])
def test_variogram_score_prefers_the_truth(wrong: str) -> None:
    rng = np.random.default_rng(2)
    genes, repeats = 6, 1200
    correlated = np.linalg.cholesky(0.2 * np.eye(genes) + 0.8)
    y = profiles(rng, 1, repeats, correlated)[0]
    other = {
        "independent": profiles(rng, 40, repeats, np.eye(genes)),
        "wide": profiles(rng, 40, repeats, 1.6 * correlated),
        "narrow": profiles(rng, 40, repeats, 0.5 * correlated),
        "other means": profiles(rng, 40, repeats, correlated) + np.linspace(-0.6, 0.6, genes),
    }[wrong]
    truth = variogram_score(profiles(rng, 40, repeats, correlated), y, np.ones(genes))
    gap = variogram_score(other, y, np.ones(genes)) - truth
    assert gap.mean() > 4 * gap.std() / np.sqrt(repeats)


def test_variogram_score_sees_dependence_better_than_the_energy_score() -> None:
    rng = np.random.default_rng(3)
    genes, repeats = 10, 600
    correlated = np.linalg.cholesky(0.5 * np.eye(genes) + 0.5)
    y = profiles(rng, 1, repeats, correlated)[0]
    right, alone = profiles(rng, 40, repeats, correlated), profiles(rng, 40, repeats, np.eye(genes))

    def strength(score) -> float:  # type: ignore[no-untyped-def]
        gap = score(alone, y, np.ones(genes)) - score(right, y, np.ones(genes))
        return float(gap.mean() / score(right, y, np.ones(genes)).mean())

    assert strength(variogram_score) > 3 * strength(energy_score)


def test_variogram_score_of_odd_inputs() -> None:
    rng = np.random.default_rng(4)
    draws, y = rng.normal(size=(9, 2, 4)), rng.normal(size=(2, 4))
    base = variogram_score(draws, y, np.ones(4))
    np.testing.assert_allclose(
        variogram_score(draws + 7, y + 7, np.ones(4)), base, rtol=1e-9
    )  # its blind spot
    turned = [3, 1, 0, 2]
    np.testing.assert_allclose(
        variogram_score(draws[::-1, :, turned], y[:, turned], np.ones(4)), base, rtol=1e-9
    )
    np.testing.assert_allclose(variogram_score(9 * draws, 9 * y, np.full(4, 9.0)), base, rtol=1e-9)
    assert np.isnan(variogram_score(draws, y, [1.0, 0, 0, 0])).all()
    point = np.repeat(y[None], 3, axis=0)
    np.testing.assert_allclose(variogram_score(point, y, np.ones(4)), 0.0, atol=1e-15)
    with pytest.raises(ValueError, match="power"):
        variogram_score(draws, y, np.ones(4), power=0.0)
    with pytest.raises(ValueError, match="variogram"):
        variogram_score(draws[:1], y, np.ones(4))


def test_variogram_genes_are_the_highest_in_control_that_have_a_scale() -> None:
    control, scale = [5.0, 1.0, 9.0, 1.0, 7.0], [1.0, 1.0, 0.0, 1.0, 1.0]
    assert variogram_genes(control, scale, 3).tolist() == [0, 1, 4]  # ties: the first
    assert variogram_genes(control, scale, 9).tolist() == [0, 1, 2, 3, 4]


def test_interval_score_is_its_definition() -> None:
    low, high = np.array([0.0, 0.0, 0.0]), np.array([2.0, 2.0, 2.0])
    found = interval_score(low, high, [1.0, -0.5, 2.25], 0.9)
    np.testing.assert_allclose(found, [2.0, 2 + 20 * 0.5, 2 + 20 * 0.25], rtol=1e-12)
    np.testing.assert_allclose(interval_score(1.0, 1.0, 1.5, 0.5), 4 * 0.5)  # a point pays for every miss
    with pytest.raises(ValueError, match="level"):
        interval_score(0.0, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="low end"):
        interval_score(1.0, 0.0, 0.0, 0.9)


@pytest.mark.parametrize("width", [0.3, 0.8, 1.3, 3.0])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_interval_score_prefers_the_true_quantiles(width: float, level: float) -> None:
    y = np.random.default_rng(5).normal(size=40_000)
    right, other = ends_normal(0.0, 1.0, [level]), ends_normal(0.0, width, [level])
    gap = interval_score(*other, y, level) - interval_score(*right, y, level)
    assert gap.mean() > 4 * gap.std() / np.sqrt(gap.size)


def test_interval_scores_of_all_levels_make_up_the_crps() -> None:
    # the CRPS is the integral over a of a/2 times the interval score, a running from 0 to 1
    y, a = 0.7, (np.arange(20_000) + 0.5) / 20_000
    low, high = ends_normal(0.0, 1.0, list(1 - a))
    scores = np.array([interval_score(lo, hi, y, 1 - one) for lo, hi, one in zip(low, high, a, strict=True)])
    assert (a / 2 * scores).mean() == pytest.approx(float(crps_normal(0.0, 1.0, y)), rel=1e-3)


def test_ends_hold_their_share() -> None:
    rng = np.random.default_rng(6)
    draws = rng.normal(size=(4000, 3)) * [1, 2, 5] + 1
    low, high = ends_draws(draws, [0.5, 0.95])
    share = ((low[:, None] <= draws) & (draws <= high[:, None])).mean(axis=1)
    np.testing.assert_allclose(share, [[0.5] * 3, [0.95] * 3], atol=1e-3)
    exact = ends_normal(1.0, [1.0, 2.0, 5.0], [0.5, 0.95])
    # Monte Carlo error of a 97.5 % quantile: sqrt(p (1 - p) / S) / density
    error = np.sqrt(0.025 * 0.975 / 4000) / norm.pdf(norm.ppf(0.975))
    np.testing.assert_allclose(np.stack([low, high]) - exact, 0, atol=4 * 5 * error)


@pytest.mark.parametrize("count", [2, 7, 300])
def test_crps_is_pyros_once_its_second_term_is_corrected(count: int) -> None:
    rng = np.random.default_rng(7)
    draws, y = rng.normal(size=(count, 3, 4)), rng.normal(size=(3, 4))
    theirs = crps_empirical(torch.tensor(draws), torch.tensor(y)).numpy()
    absolute = np.abs(draws - y).mean(axis=0)
    corrected = absolute + (theirs - absolute) * count / (count - 1)
    np.testing.assert_allclose(crps_samples(draws, y), corrected, rtol=1e-9, atol=1e-12)
    assert (crps_samples(draws, y) < theirs).all()


@pytest.mark.parametrize("count", [2, 7, 300])
def test_energy_score_is_pyros_once_its_second_term_is_corrected(count: int) -> None:
    rng = np.random.default_rng(8)
    draws, y = rng.normal(size=(count, 3, 4)), rng.normal(size=(3, 4))
    pairs = [(torch.tensor(draws[:, c]), torch.tensor(y[c])) for c in range(3)]
    theirs = np.array([float(energy_score_empirical(x, truth)) for x, truth in pairs])
    distance = np.linalg.norm(draws - y, axis=-1).mean(axis=0)
    corrected = distance + (theirs - distance) * count / (count - 1)
    np.testing.assert_allclose(energy_score(draws, y, np.ones(4)), corrected, rtol=1e-6)
