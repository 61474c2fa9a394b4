"""The table, its intervals and strata, and paired differences."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pandas as pd
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction, metrics
from pvae_pyro.evaluation import scores as s
from pvae_pyro.evaluation.bootstrap import interval, resample_ratios

pytestmark = pytest.mark.filterwarnings("error")

GENES = 25


@pytest.fixture(scope="module")
def world(make_summary):  # type: ignore[no-untyped-def]
    """A truth of 12 pairs, two of them with an unseen target, one single and control, and four methods."""
    rng = np.random.default_rng(0)
    names = [f"A{i}+B{i}" for i in range(10)] + ["A0+X", "A1+X", "A5", "control"]
    control = rng.normal(size=GENES)
    mean = {name: control + rng.normal(size=GENES) for name in names}
    halves = np.array([[m + 0.1 * rng.normal(size=GENES) for m in mean.values()] for _ in range(2)])
    truth = make_summary(mean, 25, 0.04, halves=halves)
    predicted = truth.mean + 0.3 * rng.normal(size=truth.mean.shape)
    draws = predicted + 0.3 * rng.normal(size=(60, *truth.mean.shape))
    predictions = {
        "no change": Prediction(np.tile(control, (len(names), 1))),
        "model": Prediction(predicted, draws=draws.astype(np.float32)),
        "normal": Prediction(predicted, sd=np.full_like(predicted, 0.3)),
        "worse": Prediction(predicted + 0.5 * rng.normal(size=predicted.shape)),
    }
    seen = {target for target in truth.targets if target != "X"}
    reference = control, np.full(GENES, 0.04), 100
    return truth, predictions, reference, s.evaluate(truth, predictions, reference, seen)


def test_rows_hold_what_the_metrics_say(world) -> None:  # type: ignore[no-untyped-def]
    truth, predictions, (control, _, _), scores = world
    wide = scores.rows.set_index(["condition", "method", "metric"])["value"]
    row = truth.index("A3+B3")
    x, model = truth.mean[row], predictions["model"]
    assert wide["A3+B3", "model", "l2"] == pytest.approx(np.linalg.norm(model.mean[row] - x))
    expected = np.corrcoef(model.mean[row] - control, x - control)[0, 1]
    assert wide["A3+B3", "model", "delta_pearson"] == pytest.approx(expected)
    expected = metrics.crps_samples(model.draws[:, row], x).mean()
    assert wide["A3+B3", "model", "crps"] == pytest.approx(expected)
    expected = metrics.covered_normal(model.mean[row], 0.3, x, [0.9]).mean()
    assert wide["A3+B3", "normal", "coverage_90"] == pytest.approx(expected)
    assert wide["A3+B3", "worse", "crps"] == pytest.approx(np.abs(predictions["worse"].mean[row] - x).mean())
    noise = GENES * 0.04 / 25
    expected = (np.sum((model.mean[row] - x) ** 2) - noise) / (
        np.sum((x - control) ** 2) - noise - GENES * 0.04 / 100
    )
    assert wide["A3+B3", "model", "mse_ratio"] == pytest.approx(expected)
    assert ("A3+B3", "worse", "coverage_90") not in wide.index
    assert "control" not in set(scores.rows["condition"])
    assert scores.methods == (*predictions, s.PERFECT, s.REPLICATE)


def test_undefined_correlations_are_zero_and_counted(world) -> None:  # type: ignore[no-untyped-def]
    scores = world[3]
    assert scores.undefined == {"no change": 13, "model": 0, "normal": 0, "worse": 0}
    table = scores.table("both seen", resamples=10).set_index(["method", "metric"])["mean"]
    assert table["no change", "delta_pearson"] == 0.0


def test_unseen_is_never_pooled_with_seen(world) -> None:  # type: ignore[no-untyped-def]
    scores = world[3]
    assert set(scores.strata) == {"both seen", "one unseen", "seen"}
    table = scores.table(resamples=10)
    counts = table[table["metric"] == "l2"].groupby("stratum")["conditions"].unique()
    assert {name: list(values) for name, values in counts.items()} == {
        "both seen": [10],
        "one unseen": [2],
        "seen": [1],
    }
    only = scores.table("one unseen", resamples=10)
    rows = scores.rows[(scores.rows["stratum"] == "one unseen") & (scores.rows["metric"] == "l2")]
    expected = rows[rows["method"] == "model"]["value"].mean()
    assert only.set_index(["method", "metric"]).loc[("model", "l2"), "mean"] == pytest.approx(expected)
    with pytest.raises(InputError, match="name one"):
        scores.paired("model", "worse", "l2")
    with pytest.raises(InputError, match="no stratum"):
        scores.table("none such")


def test_mse_ratio_of_a_table_is_a_ratio_of_sums(world) -> None:  # type: ignore[no-untyped-def]
    truth, predictions, (control, variance, n), scores = world
    rows = [i for i, name in enumerate(truth.conditions) if "+B" in name]
    noise = np.full(len(rows), GENES * 0.04 / 25)
    terms = metrics.mse_terms(
        predictions["worse"].mean[rows], truth.mean[rows], control, noise, variance.sum() / n
    )
    table = scores.table("both seen", resamples=50).set_index(["method", "metric"])
    assert table.loc[("worse", "mse_ratio"), "mean"] == pytest.approx(metrics.mse_ratio(*terms))


def test_scores_survive_a_csv(world) -> None:  # type: ignore[no-untyped-def]
    scores = world[3]
    again = s.Scores(pd.read_csv(io.StringIO(scores.rows.to_csv(index=False)), float_precision="round_trip"))
    pd.testing.assert_frame_equal(again.table(resamples=50), scores.table(resamples=50), check_dtype=False)


def test_bootstrap_is_the_loop_over_resampled_conditions() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(7, 2))
    weights = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=30)
    expected = [[np.repeat(values[:, c], w).mean() for c in range(2)] for w in weights]
    np.testing.assert_allclose(resample_ratios(values, np.ones((7, 2)), 30), expected)


def test_bootstrap_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=(400, 1))
    low, high = interval(resample_ratios(values, np.ones_like(values)))
    width = 2 * 1.96 * values.std() / np.sqrt(400)
    assert (high - low)[0] == pytest.approx(width, rel=0.05)
    assert low[0] < values.mean() < high[0]


def test_bootstrap_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=(9, 2))
    whole = resample_ratios(values, np.ones_like(values), 100)
    monkeypatch.setattr("pvae_pyro.evaluation.bootstrap._BLOCK", 50)
    np.testing.assert_allclose(resample_ratios(values, np.ones_like(values), 100), whole)


def test_ratios_without_a_positive_denominator_are_left_out() -> None:
    samples = resample_ratios(np.ones((2, 2)), np.array([[1.0, -1.0], [-1.0, -1.0]]), 200)
    assert np.isnan(samples[:, 1]).all() and 0 < np.isnan(samples[:, 0]).mean() < 1
    low, high = interval(samples)
    assert low[0] == 1.0 and np.isnan(high[1])


def test_paired_difference_is_tighter_than_two_intervals(world) -> None:  # type: ignore[no-untyped-def]
    scores = world[3]
    found = scores.paired("worse", "model", "l2", "both seen")
    rows = scores.rows[(scores.rows["metric"] == "l2") & (scores.rows["stratum"] == "both seen")]
    wide = rows.pivot(index="condition", columns="method", values="value")
    gap = wide["worse"] - wide["model"]
    assert found.difference == pytest.approx(gap.mean())
    assert found.standard_error == pytest.approx(gap.std(ddof=0) / np.sqrt(10), rel=0.05)
    assert found.low < found.difference < found.high and found.conditions == 10
    assert found.better == (gap < 0).mean()
    back = scores.paired("model", "worse", "l2", "both seen")
    assert (back.low, back.high, back.better) == (-found.high, -found.low, 1 - found.better)
    same = scores.paired("model", "normal", "mse_ratio", "both seen")
    assert (same.difference, same.low, same.high, same.better) == (0.0, 0.0, 0.0, 0.5)
    assert scores.paired("model", "worse", "delta_pearson", "both seen").better > 0.5
    with pytest.raises(InputError, match="coverage_90 of 'worse'"):
        scores.paired("worse", "model", "coverage_90", "both seen")


def test_floors_stand_beside_the_methods(world) -> None:  # type: ignore[no-untyped-def]
    truth, _, (control, _, _), scores = world
    table = scores.table("both seen", resamples=10).set_index(["method", "metric"])["mean"]
    floor = metrics.half_replicate_floor(truth, control)
    assert table[s.PERFECT, "l2"] == pytest.approx(floor.perfect_l2[:10].mean())
    assert table[s.REPLICATE, "l2"] == pytest.approx(table[s.PERFECT, "l2"] * np.sqrt(2))
    assert (s.PERFECT, "crps") not in table.index


def test_genes_that_are_zero_everywhere_do_not_flatter_coverage(make_summary) -> None:  # type: ignore[no-untyped-def]
    mean = np.array([1.0, 2.0, 0.0, 0.0])
    one_wrong = Prediction(np.array([[10.0, 2.0, 0.0, 0.0]]), sd=np.array([[1.0, 1.0, 0.0, 0.0]]))
    scores = s.evaluate(make_summary({"A": mean}), {"m": one_wrong}, (mean, mean, 10))
    table = scores.table(resamples=10).set_index("metric")["mean"]
    assert table["coverage_90"] == 0.5


def test_markdown_shows_a_block_per_stratum(world) -> None:  # type: ignore[no-untyped-def]
    scores = world[3]
    text = s.to_markdown(scores.table(resamples=50))
    blocks = text.split("\n\n| method |")
    assert len(blocks) == 4 and text.startswith("both seen: 10 conditions")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(s.SHOWN) + 2}
    row = next(line for line in lines if line.startswith("| worse"))
    assert row.endswith("| - | - | - | - |")
    assert "nan" not in text


def test_what_cannot_be_scored_is_refused(world, make_summary) -> None:  # type: ignore[no-untyped-def]
    truth, predictions, reference, _ = world
    with pytest.raises(InputError, match="no perturbed condition"):
        s.evaluate(truth.restrict(["control"]), {}, reference)
    with pytest.raises(ValueError, match="predicted .* measured"):
        s.evaluate(truth.restrict(["A5"]), predictions, reference)
    single = {"m": Prediction(truth.mean, draws=truth.mean[None])}
    with pytest.raises(InputError, match="two draws"):
        s.evaluate(truth, single, reference)


@pytest.mark.parametrize("name", ["CEBPB+KLF1", "FOSB+CEBPE", "AHR+KLF1"])
def test_parity_is_the_hash_of_the_canonical_name(name: str) -> None:
    canonical = "+".join(sorted(name.split("+")))
    odd = int(hashlib.sha256(canonical.encode()).hexdigest(), 16) % 2
    assert s.parity(name) == ("odd" if odd else "even")
    assert s.parity("+".join(reversed(name.split("+")))) == s.parity(name)
