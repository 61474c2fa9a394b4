"""Further point metrics by brute force, on degenerate input and on ties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from pvae_pyro.evaluation import legacy as old
from pvae_pyro.evaluation import points as p

pytestmark = pytest.mark.filterwarnings("error")

GENES = 12


@pytest.fixture
def profiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and measured (5, genes) and control (genes,)."""
    rng = np.random.default_rng(0)
    control = rng.uniform(0, 2, size=GENES)
    truth = control + rng.normal(size=(5, GENES))
    return truth + 0.5 * rng.normal(size=truth.shape), truth, control


def test_cosine_slope_and_r2_are_their_sums(profiles) -> None:  # type: ignore[no-untyped-def]
    guess, truth, control = profiles
    for row in range(5):
        a = [float(guess[row, g] - control[g]) for g in range(GENES)]
        b = [float(truth[row, g] - control[g]) for g in range(GENES)]
        inner, aa, bb = (sum(x * y for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
        assert p.delta_cosine(guess, truth, control)[0][row] == pytest.approx(inner / (aa * bb) ** 0.5)
        assert p.delta_slope(guess, truth, control)[row] == pytest.approx(inner / aa)
        mean = sum(truth[row]) / GENES
        error = sum((x - y) ** 2 for x, y in zip(guess[row], truth[row], strict=True))
        total = sum((y - mean) ** 2 for y in truth[row])
        assert p.r2_mean(guess, truth)[row] == pytest.approx(1 - error / total)


def test_shifts_of_zero_have_no_direction_and_no_slope(profiles) -> None:  # type: ignore[no-untyped-def]
    _, truth, control = profiles
    still = np.tile(control * (1 + 1e-13), (5, 1))  # zero up to rounding
    values, undefined = p.delta_cosine(still, truth, control)
    assert undefined.all() and (values == 0).all()
    assert np.isnan(p.delta_slope(still, truth, control)).all()
    assert (p.log_fold_cosine(np.tile(control, (5, 1)), truth, control) == 0).all()
    assert np.isnan(p.r2_mean(truth, np.ones_like(truth))).all()


def test_the_cosine_is_blind_to_size_and_the_slope_is_not(profiles) -> None:  # type: ignore[no-untyped-def]
    _, truth, control = profiles
    double = control + 2 * (truth - control)
    np.testing.assert_allclose(p.delta_cosine(double, truth, control)[0], 1.0)
    np.testing.assert_allclose(p.delta_slope(double, truth, control), 0.5)


def test_top_genes_by_control_take_the_first_of_ties() -> None:
    assert p.top_expressed([1.0, 3.0, 1.0, 1.0, 2.0], 3).tolist() == [0, 1, 4]
    assert p.top_expressed([1.0, 3.0], 1000).tolist() == [0, 1]


def test_weights_are_welch_statistics_of_the_cells_themselves() -> None:
    rng = np.random.default_rng(1)
    cells = [rng.normal(loc=rng.normal(size=4), size=(n, 4)) for n in (7, 12, 9)]
    found = p.deviation_weights(
        [c.mean(axis=0) for c in cells], [c.var(axis=0, ddof=1) for c in cells], [len(c) for c in cells]
    )
    for row, own in enumerate(cells):
        rest = np.concatenate([c for other, c in enumerate(cells) if other != row])
        t = np.abs(ttest_ind(own, rest, equal_var=False).statistic)
        np.testing.assert_allclose(found[row], ((t - t.min()) / (t.max() - t.min())) ** 2, rtol=1e-9)
    assert np.isnan(p.deviation_weights([[1.0, 2.0]], [[1.0, 1.0]], [3])).all()
    flat = p.deviation_weights(np.ones((3, 4)), np.zeros((3, 4)), [5, 5, 5])
    assert (flat == 0).all() and np.isnan(p.weighted_mse(np.ones((3, 4)), np.ones((3, 4)), flat)).all()
    assert np.isnan(p.weighted_r2(np.ones((3, 4)), np.ones((3, 4)), np.zeros(4), flat)).all()


def test_weighted_errors_are_their_sums(profiles) -> None:  # type: ignore[no-untyped-def]
    guess, truth, control = profiles
    w = np.random.default_rng(2).uniform(size=truth.shape)
    for row in range(5):
        error = sum(w[row, g] * (guess[row, g] - truth[row, g]) ** 2 for g in range(GENES))
        assert p.weighted_mse(guess, truth, w)[row] == pytest.approx(error / w[row].sum())
        d = truth[row] - control
        centre = sum(w[row] * d) / sum(w[row])
        assert p.weighted_r2(guess, truth, control, w)[row] == pytest.approx(
            1 - error / sum(w[row] * (d - centre) ** 2)
        )
    # equal weights: the plain ones
    np.testing.assert_allclose(
        p.weighted_r2(guess, truth, np.zeros(GENES), np.ones_like(w)), p.r2_mean(guess, truth)
    )


def test_log_fold_of_a_negative_prediction_is_that_of_zero() -> None:
    np.testing.assert_allclose(p.log_fold([-1.0, 0.0, 0.7], [0.3, 0.3, 0.3]), [-2.0, -2.0, 1.0], atol=1e-12)


def slow_share(query: np.ndarray, candidates: np.ndarray, own: int, distance: str) -> float:
    """Candidates one by one."""

    def far(x: np.ndarray) -> float:
        if distance == "euclidean":
            return float(np.linalg.norm(query - x))
        return 1 - float(query @ x / (np.linalg.norm(query) * np.linalg.norm(x)))

    mine, points = far(candidates[own]), 0.0
    for index, other in enumerate(candidates):
        if index != own:
            points += 0.5 if abs(far(other) - mine) < 1e-9 else float(far(other) > mine)
    return points / (len(candidates) - 1)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_discrimination_counts_candidates_and_halves_ties(profiles, distance) -> None:  # type: ignore[no-untyped-def]
    guess, truth, control = profiles
    queries, real = guess - control, truth - control
    real = np.concatenate([real, real[:1] * (2 if distance == "cosine" else 1)])  # as far as the first
    own = np.arange(5)
    expected = [slow_share(queries[row], real, row, distance) for row in range(5)]
    np.testing.assert_allclose(p.discrimination(queries, real, own, distance), expected)
    assert expected[0] % 0.2 == pytest.approx(0.1)  # the tie is there
    assert np.isnan(p.discrimination(queries[:1], real[:1], [0], distance)).all()


def test_discrimination_of_what_is_the_same_for_all_is_chance(profiles) -> None:  # type: ignore[no-untyped-def]
    _, truth, control = profiles
    real, own = truth - control, np.arange(5)
    np.testing.assert_allclose(p.discrimination(np.zeros_like(real), real, own), 0.5)
    # one constant prediction: its shares average 1/2, whatever it is
    constant = np.tile(real.mean(axis=0), (5, 1))
    assert p.discrimination(constant, real, own).mean() == pytest.approx(0.5)
    assert p.discrimination(constant, real, own, "euclidean").mean() == pytest.approx(0.5)
    np.testing.assert_array_equal(p.discrimination(real, real, own), 1.0)


def test_significance_is_welch_with_benjamini_hochberg() -> None:
    rng = np.random.default_rng(3)
    shift = np.where(np.arange(30) < 8, 2.0, 0.0)
    control, cells = rng.normal(size=(40, 30)), rng.normal(size=(15, 30)) + shift
    reference = (control.mean(axis=0), control.var(axis=0, ddof=1), 40)
    found = p.significant([cells.mean(axis=0)], [cells.var(axis=0, ddof=1)], [15], reference)[0]
    pvalues = ttest_ind(cells, control, equal_var=False).pvalue
    ranks = [sum(q <= one for q in pvalues) for one in pvalues]
    largest = max((one for one, r in zip(pvalues, ranks, strict=True) if one <= 0.05 * r / 30), default=0.0)
    np.testing.assert_array_equal(found, pvalues <= largest)
    assert found[:8].all()
    # neither one cell nor genes without variance are significant
    assert not p.significant([cells.mean(axis=0)], [np.zeros(30)], [1], reference).any()
    assert not p.significant([np.ones(30)], [np.zeros(30)], [9], (np.ones(30), np.zeros(30), 9)).any()


def test_overlap_and_log_fold_error_count_significant_genes(profiles) -> None:  # type: ignore[no-untyped-def]
    guess, truth, control = profiles
    chosen = np.zeros(truth.shape, bool)
    chosen[0, [1, 4, 7]] = True
    chosen[1, :10] = True
    found = p.top_overlap(guess - control, chosen)
    best = sorted(range(GENES), key=lambda g: -abs(guess[0, g] - control[g]))[:3]
    assert found[0] == pytest.approx(len(set(best) & {1, 4, 7}) / 3)
    assert np.isnan(found[2:]).all()
    error = p.log_fold_error(guess, truth, control, chosen)
    folds = [
        [float(np.log2(max(x, 0) + 0.1) - np.log2(x0 + 0.1)) for x, x0 in zip(one, control, strict=True)]
        for one in (guess[1], truth[1])
    ]
    above = sum(abs(folds[0][g] - folds[1][g]) for g in range(10))
    assert error[1] == pytest.approx(above / sum(abs(folds[1][g]) for g in range(10)))
    assert np.isnan(error[[0, 2, 3, 4]]).all()  # fewer than ten
    # no change errs by all there is
    assert p.log_fold_error(np.tile(control, (5, 1)), truth, control, chosen)[1] == pytest.approx(1.0)


def test_scaled_scores_run_from_baseline_to_replicate() -> None:
    assert p.scaled_score(4.0, 5.0, 3.0) == pytest.approx(0.5)
    assert p.scaled_score(7.0, 5.0, 3.0) == pytest.approx(-1.0)  # never clipped
    assert np.isnan(p.scaled_score(1.0, 2.0, 2.0))
    assert p.dynamic_range(0.9, 0.5, 1.0) == pytest.approx(0.8)


def test_legacy_r2_swaps_and_clips(profiles) -> None:  # type: ignore[no-untyped-def]
    guess, truth, _ = profiles
    found = old.r2_mean_legacy(guess, truth)
    for row in range(5):
        total = sum((x - guess[row].mean()) ** 2 for x in guess[row])
        raw = 1 - sum((x - y) ** 2 for x, y in zip(guess[row], truth[row], strict=True)) / total
        assert found[row] == pytest.approx(max(raw, 0.0))
    assert old.r2_mean_legacy(truth[:1] + 50, truth[:1])[0] == 0.0


def test_legacy_cell_errors_reward_collapse() -> None:
    # what the name warns of, so that nobody selects by it: the mean beats independent draws of the very law
    rng = np.random.default_rng(4)
    cells, perfect = rng.normal(size=(4000, 3)) + 1, rng.normal(size=(4000, 3)) + 1
    ratio = old.rmse_cell_raw(perfect, cells) / old.rmse_cell_raw(np.ones((4000, 3)), cells)
    assert ratio == pytest.approx(np.sqrt(2), abs=0.03)
    slow = sum((a - b) ** 2 for a, b in zip(perfect.ravel(), cells.ravel(), strict=True))
    size = sum(b**2 for b in cells.ravel())
    assert old.rmse_cell_rel(perfect, cells) == pytest.approx((slow / size) ** 0.5)
    assert np.isnan(old.rmse_cell_rel(np.ones((2, 2)), np.zeros((2, 2))))
    with pytest.raises(ValueError, match="as many"):
        old.rmse_cell_raw(perfect[:5], cells)


def test_legacy_top_genes_are_changed_and_not_dropped_out(profiles) -> None:  # type: ignore[no-untyped-def]
    guess, truth, control = profiles
    truth, control = truth.copy(), control.copy()
    truth[0, 2], control[3], truth[0, 3] = 0.0, 0.0, 0.0  # lost in the condition; zero in both
    variance, n = np.full(truth.shape, 0.5), np.full(5, 20)
    found = old.mse_top_de(guess, truth, variance, n, (control, np.full(GENES, 0.4), 100), count=4)
    order = sorted((g for g in range(GENES) if g != 2), key=lambda g: -abs(truth[0, g] - control[g]))[:4]
    assert found[0] == pytest.approx(np.mean([(guess[0, g] - truth[0, g]) ** 2 for g in order]))
    gone = old.mse_top_de(guess, np.zeros_like(truth), variance, n, (np.ones(GENES), np.ones(GENES), 9))
    assert np.isnan(gone).all()
