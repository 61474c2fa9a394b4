"""Proper scores against brute force, closed forms and what a proper score promises."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.metrics import crps_normal, crps_samples
from pvae_pyro.evaluation.proper import energy_score, log_score_normal, log_score_samples
from pvae_pyro.evaluation.scores import HIGHER_IS_BETTER, METRICS, Scores, evaluate

pytestmark = pytest.mark.filterwarnings("error")


def slow_energy(draws: np.ndarray, y: np.ndarray, scale: np.ndarray) -> float:
    """The definition for one condition, with its double sum over draws."""
    kept = scale > 0
    x, y = draws[:, kept] / scale[kept], y[kept] / scale[kept]
    count = len(x)
    error = sum(float(np.linalg.norm(a - y)) for a in x) / count
    spread = sum(float(np.linalg.norm(a - b)) for a in x for b in x) / count**2
    return error - count / (count - 1) * 0.5 * spread


def test_energy_score_is_its_double_sum() -> None:
    rng = np.random.default_rng(0)
    # far from zero and close together: the inner products must not lose the distances
    draws = (100 + 0.01 * rng.normal(size=(9, 3, 6))).astype(np.float32)
    y, scale = 100 + 0.01 * rng.normal(size=(3, 6)), np.array([0.5, 1, 2, 0, 3, 0.1])
    expected = [slow_energy(draws[:, c].astype(float), y[c], scale) for c in range(3)]
    np.testing.assert_allclose(energy_score(draws, y, scale), expected, rtol=1e-9)


def test_energy_score_of_one_gene_is_the_crps_in_its_unit() -> None:
    rng = np.random.default_rng(1)
    draws, y = rng.normal(size=(50, 4, 1)), rng.normal(size=(4, 1))
    np.testing.assert_allclose(energy_score(draws, y, [2.0]), crps_samples(draws, y)[:, 0] / 2, rtol=1e-12)
    repeated = np.repeat(draws[:1], 3, axis=0)  # a point: no spread is taken off
    np.testing.assert_allclose(energy_score(repeated, y, [1.0]), np.abs(draws[0] - y)[:, 0], rtol=1e-12)


def test_energy_score_of_a_gaussian_is_its_closed_form_whatever_the_number_of_draws() -> None:
    # in three dimensions |v| of v ~ N(0, s^2 I) has the mean s sqrt(8 / pi), and X - X' has the sd sqrt(2) s
    rng = np.random.default_rng(2)
    repeats, sd = 6000, 0.7
    mean_length = np.sqrt(8 / np.pi)
    for count in (2, 5, 40):
        draws = sd * rng.normal(size=(count, repeats, 3))
        found = energy_score(draws, np.zeros((repeats, 3)), np.ones(3))
        expected = sd * mean_length - 0.5 * np.sqrt(2) * sd * mean_length
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(repeats)


def test_energy_score_ignores_order_and_unit_of_genes_and_order_of_draws() -> None:
    rng = np.random.default_rng(3)
    draws, y, scale = rng.normal(size=(30, 2, 7)), rng.normal(size=(2, 7)), rng.uniform(0.5, 2, size=7)
    base = energy_score(draws, y, scale)
    genes, unit = rng.permutation(7), rng.uniform(0.1, 10, size=7)
    np.testing.assert_allclose(energy_score(draws[:, :, genes], y[:, genes], scale[genes]), base, rtol=1e-12)
    np.testing.assert_allclose(energy_score(draws * unit, y * unit, scale * unit), base, rtol=1e-12)
    np.testing.assert_allclose(energy_score(draws[::-1] + 5, y + 5, scale), base, rtol=1e-12)
    # a gene without a scale counts for nothing, however wrong it is
    wild = np.concatenate([draws, rng.normal(size=(30, 2, 1)) * 1e6], axis=2)
    padded = np.concatenate([y, np.zeros((2, 1))], axis=1)
    np.testing.assert_allclose(energy_score(wild, padded, np.append(scale, 0.0)), base, rtol=1e-12)
    assert np.isnan(energy_score(draws, y, np.zeros(7))).all()


def test_log_score_of_a_normal_is_its_log_density() -> None:
    rng = np.random.default_rng(4)
    mean, sd, y = rng.normal(size=(5, 8)), rng.uniform(0.1, 3, size=(5, 8)), 4 * rng.normal(size=(5, 8))
    np.testing.assert_allclose(log_score_normal(mean, sd, y), norm.logpdf(y, mean, sd), rtol=1e-12)
    assert np.isnan(log_score_normal([0.0], [0.0], [0.0])).all()


@pytest.mark.parametrize("count", [4, 6, 20])
def test_log_score_of_few_normal_draws_has_the_expectation_of_the_density(count: int) -> None:
    rng = np.random.default_rng(5)
    repeats, mu, sd = (400_000 if count == 4 else 100_000), 3.0, 0.5
    for y in (3.0, 4.0):
        found = log_score_samples(mu + sd * rng.normal(size=(count, repeats)), np.full(repeats, y))
        # with four draws 1 / sd^2 has a mean but no variance, so the truncated mean is what can be checked
        tolerance = 0.02 if count > 4 else 0.15
        assert found.mean() == pytest.approx(norm.logpdf(y, mu, sd), abs=tolerance)


def test_log_score_of_many_draws_is_that_of_their_moments_and_keeps_digits_far_from_zero() -> None:
    rng = np.random.default_rng(6)
    draws = rng.gamma(3.0, size=(20_000, 3)) * [1.0, 0.1, 10.0]
    y = np.array([2.0, 0.9, 10.0])
    plain = log_score_normal(draws.mean(axis=0), draws.std(axis=0, ddof=1), y)
    np.testing.assert_allclose(log_score_samples(draws, y), plain, atol=1e-3)
    np.testing.assert_allclose(
        log_score_samples(draws + 1e6, y + 1e6), log_score_samples(draws, y), rtol=1e-6
    )
    # in another unit every density changes by the same factor
    np.testing.assert_allclose(log_score_samples(9 * draws, 9 * y), log_score_samples(draws, y) - np.log(9))


def test_draws_without_width_have_no_log_score() -> None:
    third = np.full((7, 2), 1 / 3, dtype=np.float32)  # its mean rounds, so that its variance is not exactly 0
    third[0, 1] = 0.5
    found = log_score_samples(third, [0.4, 0.4])
    assert np.isnan(found).tolist() == [True, False]


def scores_of(mean: float, sd: float, y: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every proper score of N(mean, sd^2) for each row of y (repeats, genes); small is good."""
    draws = mean + sd * rng.normal(size=(40, *y.shape))
    return {
        "energy": energy_score(draws, y, np.ones(y.shape[1])),
        "crps": crps_samples(draws, y).mean(axis=1),
        "log, draws": -log_score_samples(draws, y).mean(axis=1),
        "log, normal": -log_score_normal(mean, sd, y).mean(axis=1),
        "crps, normal": crps_normal(mean, sd, y).mean(axis=1),
    }


@pytest.mark.parametrize(
    ("mean", "sd"),
    [(0.4, 1.0), (0.0, 1.5), (0.0, 0.6), (0.0, 0.1)],
    ids=["biased", "wide", "narrow", "collapsed"],
)
def test_the_truth_beats_what_is_not_true(mean: float, sd: float) -> None:
    rng = np.random.default_rng(7)
    y = rng.normal(size=(1500, 5))
    truth, other = scores_of(0.0, 1.0, y, rng), scores_of(mean, sd, y, rng)
    for name in truth:
        gap = other[name] - truth[name]
        assert gap.mean() > 4 * gap.std() / np.sqrt(len(gap)), name


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: energy_score(np.zeros((1, 2, 3)), np.zeros((2, 3)), np.ones(3)),
        lambda: energy_score(np.zeros((5, 2, 3)), np.zeros((2, 4)), np.ones(4)),
        lambda: energy_score(np.zeros((5, 2, 3)), np.zeros((2, 3)), np.ones(2)),
        lambda: energy_score(np.zeros((5, 2, 3)), np.zeros((2, 3)), [1.0, -1.0, 1.0]),
        lambda: energy_score(np.zeros((5, 2, 3)), np.zeros((2, 3)), [1.0, np.nan, 1.0]),
        lambda: log_score_samples(np.zeros((3, 2)), np.zeros(2)),
        lambda: log_score_samples(np.zeros((5, 2)), np.zeros(3)),
    ],
)
def test_what_has_no_score_is_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="score|scale"):
        wrong()


@pytest.fixture
def scored(make_summary):  # type: ignore[no-untyped-def]
    """Three pairs over 12 genes, the last gene zero everywhere: a truth, and methods of every kind."""
    rng = np.random.default_rng(8)
    mean = {name: np.append(rng.normal(size=11), 0.0) for name in ("A+B", "C+D", "E+F")}
    truth = make_summary(mean, 25, 0.04)
    near = truth.mean + np.append(0.2 * rng.normal(size=11), 0.0)
    draws = near + 0.3 * rng.normal(size=(30, 3, 12)) * np.append(np.ones(11), 0.0)
    methods = {
        "draws": Prediction(near, draws=draws),
        "normal": Prediction(near, sd=np.tile(np.append(np.full(11, 0.3), 0.0), (3, 1))),
        "point": Prediction(near),
    }
    return truth, methods, (np.append(np.ones(11), 0.0), np.append(np.full(11, 0.25), 0.0), 50)


def wide(scores: Scores) -> pd.DataFrame:
    """Conditions x (method, metric)."""
    return scores.rows.pivot(index="condition", columns=["method", "metric"], values="value")


def test_evaluate_scores_whatever_has_a_distribution(scored) -> None:  # type: ignore[no-untyped-def]
    truth, methods, control = scored
    rows = wide(evaluate(truth, methods, control))
    draws = methods["draws"].draws
    expected = energy_score(draws, truth.mean, np.sqrt(control[1]))
    np.testing.assert_allclose(rows["draws", "energy_score"].to_numpy(), expected)
    expected = log_score_samples(draws, truth.mean)[:, :11].mean(axis=1)
    np.testing.assert_allclose(rows["draws", "log_score"].to_numpy(), expected)
    expected = norm.logpdf(truth.mean, methods["normal"].mean, 0.3)[:, :11].mean(axis=1)
    np.testing.assert_allclose(rows["normal", "log_score"].to_numpy(), expected)
    found = set(rows)
    assert ("normal", "energy_score") not in found
    assert not {("point", metric) for metric in ("energy_score", "log_score")} & found
    assert {"energy_score", "log_score"} <= set(METRICS) and "log_score" in HIGHER_IS_BETTER
    halved = wide(evaluate(truth, methods, control, scale=2 * np.sqrt(control[1])))
    np.testing.assert_allclose(2 * halved["draws", "energy_score"], rows["draws", "energy_score"])


def test_the_log_score_counts_the_same_genes_for_every_method(scored) -> None:  # type: ignore[no-untyped-def]
    truth, methods, control = scored
    sd = np.array(methods["normal"].sd)
    sd[1, :4] = 0.0  # sure of four genes in one condition
    sure = Prediction(methods["normal"].mean, sd=sd)
    nowhere = Prediction(sure.mean, sd=np.zeros_like(sd))
    scores = evaluate(truth, {"draws": methods["draws"], "sure": sure, "nowhere": nowhere}, control)
    rows = wide(scores)
    expected = log_score_samples(methods["draws"].draws, truth.mean)[:, 4:11].mean(axis=1)
    np.testing.assert_allclose(rows["draws", "log_score"].to_numpy(), expected)
    assert np.isfinite(rows["sure", "log_score"]).all()
    # a part of another method takes nothing away from it
    whole = wide(evaluate(truth, {"draws": methods["draws"], "part": sure}, control, partial=["part"]))
    alone = wide(evaluate(truth, {"draws": methods["draws"]}, control))
    np.testing.assert_array_equal(whole["draws", "log_score"], alone["draws", "log_score"])
    np.testing.assert_array_equal(whole["part", "log_score"], rows["sure", "log_score"])
    # one that has no width anywhere has no log score, and takes nobody else's away
    assert ("nowhere", "log_score") not in set(rows)


def test_more_nats_are_better_and_fewer_sds_are(scored) -> None:  # type: ignore[no-untyped-def]
    truth, methods, control = scored
    far = Prediction(methods["draws"].mean + 2, draws=methods["draws"].draws + 2)
    scores = evaluate(truth, {"near": methods["draws"], "far": far}, control)
    for metric in ("log_score", "energy_score"):
        paired = scores.paired("near", "far", metric, resamples=200)
        assert paired.better == 1.0
        assert (paired.difference > 0) == (metric == "log_score")


def test_too_few_draws_have_no_log_score_but_the_rest(scored) -> None:  # type: ignore[no-untyped-def]
    truth, methods, control = scored
    few = Prediction(methods["draws"].mean, draws=methods["draws"].draws[:3])
    metrics = set(evaluate(truth, {"few": few}, control).rows.query("method == 'few'")["metric"])
    assert "energy_score" in metrics and "log_score" not in metrics
