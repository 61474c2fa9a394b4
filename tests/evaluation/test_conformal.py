"""Group conformal by definition and by simulation of its promise; ranking of conditions by doubt."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.evaluation import conformal as q
from pvae_pyro.evaluation import ranking as r

pytestmark = pytest.mark.filterwarnings("error")


def groups(rng: np.random.Generator, pairs: int, genes: int = 30) -> np.ndarray:
    """Errors of pairs whose genes share a size of their own, with sd 1 stated: too narrow for most."""
    return rng.normal(size=(pairs, genes)) * rng.gamma(2.0, size=(pairs, 1))


def test_relative_errors_and_profiles_are_order_statistics() -> None:
    rng = np.random.default_rng(0)
    mean, sd, y = rng.normal(size=(3, 11)), rng.uniform(0.5, 2, size=(3, 11)), rng.normal(size=(3, 11))
    found = q.profile_scores(mean, sd, y, 0.8)
    for row in range(3):
        ratios = sorted(abs(y[row, g] - mean[row, g]) / sd[row, g] for g in range(11))
        assert found[row] == pytest.approx(ratios[8])  # 9 of 11 is the first share of 0.8 or more
        assert np.mean(np.array(ratios) <= found[row]) >= 0.8
    np.testing.assert_array_equal(q.relative_error([1.0, 1.0], [0.0, 0.0], [1.0, 2.0]), [0.0, np.inf])


def test_profile_factor_is_the_place_it_says() -> None:
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0])
    assert q.profile_factor(scores, 0.9) == 9.0
    assert q.profile_factor(scores, 0.5) == 5.0
    assert q.profile_factor(scores[:8], 0.9) == np.inf
    assert q.profile_factor([], 0.9) == np.inf


def test_pooled_factor_is_the_weighted_quantile() -> None:
    rng = np.random.default_rng(1)
    ratios = np.abs(groups(rng, 12, 7))
    ratios[0, 3:] = np.nan
    found = q.pooled_factor(ratios, 0.8)
    cases = []
    for row in ratios:
        known = row[~np.isnan(row)]
        cases += [(value, 1 / (13 * len(known))) for value in known]
    cases.sort()
    first = next(k for k in range(len(cases)) if sum(weight for _, weight in cases[: k + 1]) >= 0.8 - 1e-9)
    assert found == cases[first][0]
    assert q.pooled_factor(ratios[:3], 0.8) == np.inf


@pytest.mark.parametrize("pairs", [19, 40])
def test_new_pairs_are_covered_as_promised(pairs: int) -> None:
    rng = np.random.default_rng(2)
    repeats, level = 800, 0.9
    pooled, profiled, raw = [], [], []
    for _ in range(repeats):
        old, new = groups(rng, pairs), groups(rng, 1)[0]
        pooled.append((np.abs(new) <= q.pooled_factor(np.abs(old), level)).mean())
        factor = q.profile_factor(q.profile_scores(np.zeros_like(old), np.ones_like(old), old), level)
        profiled.append((np.abs(new) <= factor).mean() >= 0.9)
        raw.append((np.abs(new) <= 1.645).mean())
    for found in (pooled, profiled):
        error = np.std(found) / np.sqrt(repeats)
        # at least the level, at most 1 / (pairs + 1) more, up to three Monte Carlo errors
        assert level - 3 * error < np.mean(found) < level + 1 / (pairs + 1) + 3 * error
    assert np.mean(raw) < 0.8


def test_realised_coverage_is_beta() -> None:
    low, high = q.coverage_range(60, 0.9)
    assert (low, high) == pytest.approx((0.83, 0.96), abs=0.006)  # evaluation.md 4.4
    assert q.coverage_range(20, 0.9) == pytest.approx((0.78, 0.98), abs=0.01)
    assert q.coverage_range(5, 0.9) == (1.0, 1.0)
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(4000):
        factor = q.profile_factor(
            rng.uniform(size=60), 0.9
        )  # the share of uniform scores below it is the factor
        shares.append(factor)
    assert np.quantile(shares, [0.05, 0.95]) == pytest.approx([low, high], abs=0.006)


def test_left_out_factors_do_not_look_at_their_own_pair() -> None:
    rng = np.random.default_rng(4)
    y = groups(rng, 15)
    mean, sd = np.zeros_like(y), np.ones_like(y)
    for profile in (False, True):
        base = q.left_out_factors(mean, sd, y, 0.9, profile)
        changed = y.copy()
        changed[3] *= 100
        found = q.left_out_factors(mean, sd, changed, 0.9, profile)
        assert found[3] == base[3] and (np.delete(found, 3) >= np.delete(base, 3)).all()
        others = np.delete(np.arange(15), 3)
        own = (
            q.profile_factor(q.profile_scores(mean, sd, y)[others], 0.9)
            if profile
            else q.pooled_factor(np.abs(y[others]), 0.9)
        )
        assert base[3] == own


def test_cv_plus_is_its_definition() -> None:
    rng = np.random.default_rng(5)
    scores, fold = rng.uniform(1, 3, size=13), np.arange(13) % 3
    mean, sd = rng.normal(size=(3, 2, 4)), rng.uniform(0.5, 1, size=(3, 2, 4))
    low, high = q.cv_plus(scores, fold, mean, sd, 0.8)
    for row in range(2):
        for g in range(4):
            ends = [
                [mean[k, row, g] + sign * s * sd[k, row, g] for s, k in zip(scores, fold, strict=True)]
                for sign in (-1, 1)
            ]
            assert low[row, g] == pytest.approx(sorted(ends[0])[int(0.2 * 14) - 1])
            assert high[row, g] == pytest.approx(sorted(ends[1])[int(np.ceil(0.8 * 14)) - 1])
    low, high = q.cv_plus(scores[:3], fold[:3], mean, sd, 0.9)
    assert np.isinf(low).all() and np.isinf(high).all()
    with pytest.raises(ValueError, match="folds"):
        q.cv_plus(scores, fold + 1, mean, sd, 0.9)


def test_cv_plus_of_one_fold_is_the_factor_itself() -> None:
    rng = np.random.default_rng(6)
    scores, mean, sd = rng.uniform(size=29), rng.normal(size=(1, 3, 5)), rng.uniform(1, 2, size=(1, 3, 5))
    low, high = q.cv_plus(scores, np.zeros(29, int), mean, sd, 0.9)
    factor = q.profile_factor(scores, 0.9)
    np.testing.assert_allclose(high, mean[0] + factor * sd[0])
    np.testing.assert_allclose(low, mean[0] - factor * sd[0])


def test_cv_plus_covers_where_every_fold_was_fitted_without_its_pairs() -> None:
    rng = np.random.default_rng(7)
    repeats, pairs, folds, level, covered = 400, 40, 4, 0.9, []
    for _ in range(repeats):
        # the "fit" is the mean of what it saw: honest only out of its own fold
        values = rng.normal(size=(pairs + 1, 20)) * 0.3 + rng.normal(size=(pairs + 1, 1))
        fold = np.arange(pairs) % folds
        centres = np.array([values[:-1][fold != k].mean(axis=0) for k in range(folds)])
        sd = np.ones_like(centres)
        scores = q.profile_scores(centres[fold], sd[fold], values[:-1])
        low, high = q.cv_plus(scores, fold, centres[:, None], sd[:, None], level)
        covered.append(((low[0] <= values[-1]) & (values[-1] <= high[0])).mean() >= 0.9 - 1e-9)
    error = np.std(covered) / np.sqrt(repeats)
    assert np.mean(covered) > level - 3 * error - 1e-9


def test_risk_coverage_is_a_running_mean_that_ties_share() -> None:
    error, doubt = [4.0, 1.0, 2.0, 3.0], [0.9, 0.1, 0.5, 0.1]
    np.testing.assert_allclose(r.risk_coverage(error, doubt), [2.0, 2.0, 2.0, 2.5])
    assert r.aurc(error, [0, 0, 0, 0]) == pytest.approx(2.5)
    assert r.aurc(error, error) == pytest.approx((1 + 1.5 + 2 + 2.5) / 4)
    with pytest.raises(ValueError, match="one error"):
        r.risk_coverage([1.0, 2.0], [1.0])


def test_oracle_is_the_least_of_all_orders() -> None:
    from itertools import permutations

    error = np.array([0.3, 2.0, 1.1, 0.7])
    orders = [r.aurc(error, np.array(order, float)) for order in permutations(range(4))]
    assert r.aurc(error, error) == pytest.approx(min(orders))
    assert np.mean(orders) == pytest.approx(error.mean())


def test_ranking_table_tells_what_knows_from_what_does_not() -> None:
    rng = np.random.default_rng(8)
    scale, size = rng.gamma(2.0, size=200), rng.gamma(2.0, size=200)
    error = scale * size * rng.uniform(0.5, 1.5, size=200)
    table = r.ranking_table(
        error, {"scale": scale * size, "size": size, "noise": rng.uniform(size=200)}, size, 200
    )
    lost = dict(zip(table["doubt"], table["lost"], strict=True))
    assert lost[r.ORACLE] == 0 and lost["scale"] < lost["size"] < lost["noise"]
    assert lost["noise"] == pytest.approx(1, abs=0.35)
    partial = dict(zip(table["doubt"], table["partial_spearman"], strict=True))
    assert partial["scale"] > 0.6 and np.isnan(partial["size"]) and abs(partial["noise"]) < 0.25
    assert (table["low"] <= table["aurc"]).all() and (table["aurc"] <= table["high"]).all()
    assert np.isnan(r.ranking_table(np.ones(5), {}, np.ones(5), 20)["lost"]).all()


def test_partial_spearman_without_a_third_is_spearman() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(9)
    a, b = rng.normal(size=30).round(1), rng.normal(size=30).round(1)
    assert r.partial_spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(r.partial_spearman(a, np.ones(30)))
