"""Calibration by brute force, and on predictions that are right, too narrow or too wide by construction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import kstest

from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation import calibration as c
from pvae_pyro.evaluation.metrics import covered_draws, covered_normal

pytestmark = pytest.mark.filterwarnings("error")

C, G = 40, 60


def world(seed: int = 0, width: float = 1.0, shift: float = 0.0) -> tuple[Prediction, Prediction, np.ndarray]:
    """The same Normal prediction as draws and in closed form, and values whose law it is if width is 1 and shift 0."""
    rng = np.random.default_rng(seed)
    mean, sd = rng.normal(size=(C, G)), rng.uniform(0.2, 2, size=(C, G))
    draws = mean + sd * rng.normal(size=(300, C, G))
    return (
        Prediction(mean, draws=draws),
        Prediction(mean, sd=sd),
        mean + shift * sd + width * sd * rng.normal(size=(C, G)),
    )


def test_intervals_are_those_of_the_scores() -> None:
    drawn, normal, y = world()
    genes = np.arange(G) > 3
    for prediction, covered in (
        (drawn, covered_draws(drawn.draws, y)),
        (normal, covered_normal(normal.mean, normal.sd, y)),
    ):
        found = c.Intervals.of(prediction, y, genes)
        np.testing.assert_array_equal(found.inside, covered)
        table = c.coverage_table(found, {}, resamples=200)
        np.testing.assert_allclose(table["coverage"], covered[:, :, genes].mean(axis=(1, 2)))
        assert (table["conditions"] == C).all() and (table["cases"] == C * (G - 4)).all()
    np.testing.assert_allclose(found.width[2], 2 * 1.6448536 * normal.sd, rtol=1e-6)
    with pytest.raises(ValueError, match="point"):
        c.Intervals.of(Prediction(y), y, genes)


def test_groups_are_counted_case_by_case() -> None:
    _, normal, y = world(width=1.3)
    found = c.Intervals.of(normal, y, np.ones(G, bool), (0.8,))
    by_condition = np.where(np.arange(C) < 9, "few", "")[:, None]
    by_gene = np.where(np.arange(G) % 2, "odd", "even")
    by_width = c.quantile_groups(found.width[0], 10)
    groups = {"n": by_condition, "gene": by_gene, "width": by_width}
    table = c.coverage_table(found, groups, found.width / 2, resamples=300).set_index(["group", "label"])
    assert set(table.index) == {("overall", "all"), ("n", "few"), ("gene", "even"), ("gene", "odd")} | {
        ("width", f"{i:02d}") for i in range(1, 11)
    }
    np.testing.assert_allclose(table["relative_width"], 2.0)
    inside = found.inside[0]
    assert table.loc[("n", "few"), "coverage"] == pytest.approx(inside[:9].mean())
    assert table.loc[("n", "few"), "conditions"] == 9
    assert table.loc[("gene", "odd"), "coverage"] == pytest.approx(inside[:, 1::2].mean())
    for label in ("01", "10"):
        cases = [(i, g) for i in range(C) for g in range(G) if by_width[i, g] == label]
        expected = np.mean([inside[case] for case in cases])
        assert table.loc[("width", label), "coverage"] == pytest.approx(expected)
        assert table.loc[("width", label), "cases"] == len(cases) == C * G // 10
        assert table.loc[("width", label), "width"] == pytest.approx(
            np.mean([found.width[0][case] for case in cases])
        )
    assert table.loc[("width", "01"), "width"] < table.loc[("width", "10"), "width"]
    assert ((table["low"] <= table["coverage"]) & (table["coverage"] <= table["high"])).all()


def test_intervals_of_coverage_come_from_conditions_not_from_genes() -> None:
    # every gene of a condition is inside or none: 60 genes are no more evidence than one
    inside = np.repeat(np.random.default_rng(1).uniform(size=(C, 1)) < 0.7, G, axis=1)[None]
    found = c.Intervals((0.7,), inside, np.ones((1, C, G)), np.ones(G, bool))
    row = c.coverage_table(found, {}).iloc[0]
    share = row["coverage"]
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / C)
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("width", "verdict"), [(1.0, 0), (1.5, -1), (0.6, 1)])
def test_coverage_says_right_narrow_and_wide(width: float, verdict: int) -> None:
    drawn, _, y = world(2, width)
    table = c.coverage_table(c.Intervals.of(drawn, y, np.ones(G, bool)), {}, resamples=1000)
    # of 300 draws calibrated intervals hold a little less
    target = table["level"] * 299 / 301
    found = (table["low"] > target).astype(int) - (table["high"] < target).astype(int)
    assert (found == verdict).all()


def test_quantile_groups_keep_ties_together_and_leave_nan_out() -> None:
    assert c.terciles([3.0, 1.0, np.nan, 2.0]).tolist() == ["high", "low", "", "middle"]
    assert c.terciles([5.0, 5.0, 5.0]).tolist() == ["middle"] * 3
    assert c.quantile_groups(np.arange(20.0), 10).tolist() == [f"{i:02d}" for i in range(1, 11) for _ in "ab"]
    assert c.quantile_groups([np.nan], 4).tolist() == [""]
    assert c.terciles([1.0]).tolist() == ["middle"]


@pytest.mark.parametrize("kind", [0, 1], ids=["draws", "normal"])
def test_pit_is_uniform_where_calibrated(kind: int) -> None:
    prediction, y = world(3)[kind], world(3)[2]
    u = c.pit(prediction, y, seed=1)
    assert ((u >= 0) & (u <= 1)).all() and kstest(u.ravel(), "uniform").pvalue > 0.01
    far = c.pit(prediction, world(3, shift=1.0)[2])
    assert kstest(far.ravel(), "uniform").pvalue < 1e-6 and far.mean() > 0.6


def test_pit_of_ties_is_spread_and_of_counts_uniform() -> None:
    rng = np.random.default_rng(4)
    draws = rng.poisson(1.0, size=(50, 400, 5)).astype(float)
    y = rng.poisson(1.0, size=(400, 5)).astype(float)
    assert kstest(c.pit(Prediction(draws.mean(axis=0), draws=draws), y).ravel(), "uniform").pvalue > 0.01
    sure = Prediction(np.zeros((1, 3)), sd=np.zeros((1, 3)))
    u = c.pit(sure, [[-1.0, 0.0, 1.0]])[0]
    assert u[0] == 0 and u[2] == 1 and 0 < u[1] < 1
    with pytest.raises(ValueError, match="point"):
        c.pit(Prediction(y), y)


def test_pit_difference_is_the_ecdf_minus_its_argument() -> None:
    u = np.random.default_rng(5).uniform(size=(30, 25))
    table = c.pit_difference(u, 9, resamples=500)
    for _, row in table.iterrows():
        shares = [sum(one <= row["u"] for one in condition) / 25 for condition in u]
        assert row["difference"] == pytest.approx(np.mean(shares) - row["u"])
    alone = c.pit_difference(u[:1], 9)
    assert alone["low"].isna().all() and alone["difference"].notna().all()


def test_the_band_for_all_points_holds_zero_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        # genes of a condition share most of their error
        z = 0.8 * rng.normal(size=(C, 1)) + 0.6 * rng.normal(size=(C, 20))
        table = c.pit_difference(ndtr(z), 19, resamples=400)
        held += bool(((table["low"] <= 0) & (table["high"] >= 0)).all())
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200) < held / 200 < 1


def test_probability_above_counts_draws() -> None:
    drawn, normal, _ = world(7)
    threshold = np.linspace(-1, 1, G)
    found = c.probability_above(drawn, threshold)
    assert found[3, 5] == pytest.approx(np.mean([one[3, 5] > threshold[5] for one in drawn.draws]))
    np.testing.assert_allclose(found, c.probability_above(normal, threshold), atol=5 * 0.5 / np.sqrt(300))
    tied = Prediction(np.zeros((1, 1)), draws=np.array([[[0.0]], [[1.0]]]))
    assert c.probability_above(tied, 0.0)[0, 0] == 0.75
    np.testing.assert_array_equal(
        c.probability_above(Prediction(np.array([[-1.0, 0.0, 2.0]])), 0.0), [[0, 0.5, 1]]
    )


def test_reliability_is_a_count_per_bin() -> None:
    rng = np.random.default_rng(8)
    p = rng.uniform(size=(C, G))
    p[0, :2] = 0.0, 1.0
    hit = rng.uniform(size=(C, G)) < p
    counted = rng.uniform(size=(C, G)) < 0.8
    table = c.reliability(p, hit, counted, 5, resamples=300)
    for _, row in table.iterrows():
        top = row["to"] + (row["to"] == 1)
        cases = [(i, g) for i in range(C) for g in range(G) if counted[i, g] and row["from"] <= p[i, g] < top]
        assert row["cases"] == len(cases)
        assert row["observed"] == pytest.approx(np.mean([hit[one] for one in cases]))
        assert row["predicted"] == pytest.approx(np.mean([p[one] for one in cases]))
    assert table["cases"].sum() == counted.sum()
    # calibrated by construction: within four binomial errors
    error = np.sqrt(0.25 / table["cases"])
    assert (np.abs(table["observed"] - table["predicted"]) < 4 * error).all()
    empty = c.reliability(p, hit, np.zeros((1, 1), bool))
    assert len(empty) == 0 and "observed" in empty
    with pytest.raises(ValueError, match="probabilities"):
        c.reliability(p + 1, hit)


def test_sure_of_too_much_shows_as_a_flat_curve() -> None:
    rng = np.random.default_rng(9)
    p = rng.uniform(size=(C, G))
    hit = rng.uniform(size=(C, G)) < 0.5 + 0.3 * (p - 0.5)
    binned, curve = c.reliability(p, hit), c.isotonic_reliability(p, hit, resamples=200)
    assert binned["high"].iloc[-1] < 0.8 and binned["low"].iloc[0] > 0.2
    assert (np.diff(curve["fitted"]) >= 0).all() and (curve["low"] <= curve["high"]).all()
    inside = (curve["low"] <= curve["fitted"] + 1e-9) & (curve["fitted"] <= curve["high"] + 1e-9)
    assert inside.mean() > 0.9
    assert curve["cases"].sum() == C * G
    slope = np.polyfit(curve["predicted"], curve["fitted"], 1, w=np.sqrt(curve["cases"]))[0]
    assert slope == pytest.approx(0.3, abs=0.1)


def test_isotonic_curve_is_the_best_of_all_rising_ones() -> None:
    # against quadratic programming by exhaustive pooling on a case small enough
    p = np.array([[0.105, 0.205, 0.305, 0.405]])
    hit = np.array([[True, False, True, False]])
    fitted = c.isotonic_reliability(p, hit, resamples=2)["fitted"].to_numpy()
    np.testing.assert_allclose(fitted, [0.5, 0.5, 0.5, 0.5])
    up = c.isotonic_reliability(p, hit[:, ::-1], resamples=2)["fitted"].to_numpy()
    np.testing.assert_allclose(up, [0.0, 0.5, 0.5, 1.0])
