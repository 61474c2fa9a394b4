"""The further metrics of a prediction: what they leave out, what they rank among, and their place in the scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.distributions import COVERAGES
from pvae_pyro.evaluation.legacy import LEGACY
from pvae_pyro.evaluation.metrics import delta_pearson
from pvae_pyro.evaluation.panel import FURTHER, Panel
from pvae_pyro.evaluation.points import discrimination
from pvae_pyro.evaluation.proper import interval_score, variogram_genes, variogram_score
from pvae_pyro.evaluation.scores import METRICS, evaluate

pytestmark = pytest.mark.filterwarnings("error")

GENES = 15


@pytest.fixture
def world(make_summary):  # type: ignore[no-untyped-def]
    """Training singles, four measured pairs, and predictions of them."""
    rng = np.random.default_rng(0)
    control = rng.uniform(0.5, 3, size=GENES)
    shift = {name: rng.normal(size=GENES) for name in "ABCD"}
    training = make_summary({"control": control} | {name: control + d for name, d in shift.items()}, 40, 0.1)
    pairs = {
        f"{a}+{b}": control + shift[a] + shift[b] + 0.3 * rng.normal(size=GENES)
        for a, b in ("AB", "AC", "BD", "CD")
    }
    truth = make_summary(pairs, 40, 0.1, targets=list("ABCD"))
    reference = training.mean[0], training.variance[0], 40
    additive = np.array([control + shift[name[0]] + shift[name[2]] for name in pairs])
    return training, truth, reference, additive, rng


def test_every_metric_of_the_panel_has_a_row(world) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, rng = world
    draws = additive + 0.3 * rng.normal(size=(25, 4, GENES))
    predictions = {"additive": Prediction(additive), "draws": Prediction(draws.mean(axis=0), draws=draws)}
    scores = evaluate(truth, predictions, reference, training=training)
    table = scores.table(metrics=[*METRICS, *FURTHER, *LEGACY], resamples=100)
    found = set(table.loc[table["method"] == "draws", "metric"])
    assert found == {*METRICS, *FURTHER, *LEGACY}
    assert set(table.loc[table["method"] == "additive", "metric"]) == found - {
        "energy_score", "variogram_score", "log_score", "interval_score_90", *COVERAGES}  # fmt: skip
    rows = scores.rows.pivot(index="condition", columns=["method", "metric"], values="value").loc[
        list(truth.conditions)
    ]
    ends = np.quantile(draws, [0.05, 0.95], axis=0)
    expected = interval_score(ends[0], ends[1], truth.mean, 0.9).mean(axis=1)
    np.testing.assert_allclose(rows["draws", "interval_score_90"], expected)
    unit = np.sqrt(reference[1])
    genes = variogram_genes(reference[0], unit)
    np.testing.assert_allclose(
        rows["draws", "variogram_score"],
        variogram_score(draws[:, :, genes], truth.mean[:, genes], unit[genes]),
    )


def test_additive_has_no_skill_over_itself_and_the_truth_has_all(world) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, _ = world
    predictions = {
        "additive": Prediction(additive),
        "measured": Prediction(truth.mean),
        "half": Prediction((additive + truth.mean) / 2),
    }
    table = evaluate(truth, predictions, reference, training=training).table(
        metrics=["skill_over_additive"], resamples=100
    )
    skill = dict(zip(table["method"], table["mean"], strict=True))
    assert skill["additive"] == pytest.approx(0, abs=1e-12)
    error = ((additive - truth.mean) ** 2).sum()
    noise = 4 * GENES * 0.1 / 40
    assert skill["measured"] == pytest.approx(error / (error - noise))  # above 1: it knows the noise, too
    assert skill["half"] == pytest.approx(0.75 * error / (error - noise))


def test_genes_of_the_targets_are_left_out(world, make_summary) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, _ = world
    named = np.array(["A", *truth.genes[1:]])
    renamed = dataclasses.replace(truth, genes=named)
    wild = additive.copy()
    wild[:, 0] += 100
    rows = np.arange(4)
    panel = Panel.of(renamed, rows, reference, dataclasses.replace(training, genes=named))
    calm, odd = panel.columns(additive), panel.columns(wild)
    for name in calm:
        assert (name in LEGACY) == (not np.array_equal(calm[name], odd[name])), name
    centre = training.mean[1:].mean(axis=0)
    np.testing.assert_allclose(
        calm["delta_pearson_perturbed"], delta_pearson(additive[:, 1:], truth.mean[:, 1:], centre[1:])[0]
    )


def test_pairs_are_ranked_among_pairs_and_their_own_singles(world) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, _ = world
    found = Panel.of(truth, np.arange(4), reference, training).columns(additive)
    x0 = reference[0]
    np.testing.assert_allclose(
        found["pds_cosine"], discrimination(additive - x0, truth.mean - x0, np.arange(4))
    )
    singles = training.mean[1:] - x0
    candidates = np.concatenate([truth.mean - x0, singles[[0, 1]]])
    assert found["pds_cosine_hard"][0] == discrimination(additive[:1] - x0, candidates, [0])[0]


def test_one_condition_and_no_training_leave_out_what_has_no_meaning(world) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, _ = world
    alone = Panel.of(truth.restrict(["A+B"]), np.arange(1), reference, training).columns(additive[:1])
    assert not {"pds_cosine", "centroid_accuracy", "wmse", "r2_delta_weighted"} & set(alone)
    assert {"pds_cosine_hard", "l2_top1000"} <= set(alone)  # its own singles are candidates enough
    untaught = Panel.of(truth, np.arange(4), reference).columns(additive)
    assert not {"delta_pearson_perturbed", "pds_cosine_hard", *("skill_over_additive_numerator",)} & set(
        untaught
    )


def test_a_collapsed_method_does_not_win(world) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, rng = world
    constant = np.tile(training.mean[1:].mean(axis=0), (4, 1))
    table = evaluate(
        truth,
        {"additive": Prediction(additive), "constant": Prediction(constant)},
        reference,
        training=training,
    )
    means = table.rows.groupby(["metric", "method"])["value"].mean().unstack("method")
    for metric in (set(FURTHER) - {"delta_slope"}) & set(means.index):
        sign = -1 if metric in ("l2_top1000", "wmse", "log_fold_error") else 1
        assert sign * means.loc[metric, "additive"] > sign * means.loc[metric, "constant"], metric


def test_legacy_scores_are_never_compared(world) -> None:  # type: ignore[no-untyped-def]
    training, truth, reference, additive, _ = world
    scores = evaluate(
        truth, {"a": Prediction(additive), "b": Prediction(additive + 1)}, reference, training=training
    )
    for metric in LEGACY:
        with pytest.raises(InputError, match="legacy"):
            scores.paired("a", "b", metric)
    assert not set(LEGACY) & {*METRICS, *FURTHER}
    # nearer to a slope of one is better, on either side of it
    assert scores.paired("a", "b", "delta_slope", resamples=50).better == 1.0
