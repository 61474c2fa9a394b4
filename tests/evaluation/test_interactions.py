"""Interactions: measured with their noise, predicted with skill or without, called with probabilities that hold."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import interactions as x

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def screen(make_summary):  # type: ignore[no-untyped-def]
    """Training singles and measured pairs over four genes; D has no single."""
    rng = np.random.default_rng(0)
    control, shift = rng.normal(size=4), {name: rng.normal(size=4) for name in "ABC"}
    beyond = {"A+B": np.array([0.5, 0, 0, 0]), "A+C": np.zeros(4), "A+D": np.ones(4)}
    means = {"control": control} | {name: control + d for name, d in shift.items()}
    training = make_summary(means, [100, 20, 30, 40], [[0.5] * 4, [1.0] * 4, [1.5] * 4, [2.0] * 4])
    pairs = {name: control + shift["A"] + shift.get(name[2], 0) + e for name, e in beyond.items()}
    return training, make_summary(pairs, 50, 3.0, targets=list("ABCD")), beyond


def test_interactions_and_their_errors_are_sums(screen) -> None:  # type: ignore[no-untyped-def]
    training, truth, beyond = screen
    found = x.measured_interactions(truth, training)
    assert found.conditions == ("A+B", "A+C")
    np.testing.assert_allclose(found.e, [beyond["A+B"], beyond["A+C"]], atol=1e-12)
    expected = 3 / 50 + 1.0 / 20 + 1.5 / 30 + 0.5 / 100
    np.testing.assert_allclose(found.se[0] ** 2, expected)
    with pytest.raises(InputError, match="trained alone"):
        x.measured_interactions(truth.restrict(["A+D"]), training)


def test_standard_errors_are_the_spread_of_repeated_measurements(make_summary) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    genes, n = 3000, {"control": 30, "A": 12, "B": 20, "A+B": 15}
    sd = {"control": 1.0, "A": 1.5, "B": 0.7, "A+B": 1.2}
    means = {name: sd[name] / np.sqrt(n[name]) * rng.normal(size=genes) for name in n}

    def summary(*names: str):  # type: ignore[no-untyped-def]
        return make_summary(
            {k: means[k] for k in names},
            [n[k] for k in names],
            [[sd[k] ** 2] * genes for k in names],
            targets=["A", "B"],
        )

    found = x.measured_interactions(summary("A+B"), summary("control", "A", "B"))
    assert (found.e / found.se).std() == pytest.approx(1, abs=4 / np.sqrt(2 * genes))


def test_resistant_pairs_are_the_third_that_adds_up_least() -> None:
    e = np.array([[0.1, 0.1], [3.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0], [1.4, 0.0]])
    se = np.full(e.shape, 0.1)
    assert x.resistant(e, se).tolist() == [False, True, False, True, False, False]
    se[1] = 2.5  # all of it is noise
    assert x.resistant(e, se).tolist() == [False, False, True, True, False, False]
    assert not x.resistant(e[:1], se[:1]).any()


def world(seed: int = 2, pairs: int = 60, genes: int = 80):  # type: ignore[no-untyped-def]
    """True interactions of a few genes, their measurements, and standard errors."""
    rng = np.random.default_rng(seed)
    true = np.where(rng.uniform(size=(pairs, genes)) < 0.2, rng.normal(size=(pairs, genes)), 0.0)
    se = rng.uniform(0.05, 0.3, size=true.shape)
    names = tuple(f"A+{i}" for i in range(pairs))
    return true, x.Measured(names, true + se * rng.normal(size=true.shape), se), rng


def metrics(measured, predicted) -> dict:  # type: ignore[no-untyped-def, type-arg]
    table = x.interaction_table(measured, predicted, resamples=400)
    return {(row.stratum, row.metric): row for row in table.itertuples()}


def test_truth_has_skill_one_and_additive_none() -> None:
    true, measured, rng = world()
    perfect, additive, half = (metrics(measured, one) for one in (true, 0 * true, 0.5 * true))
    assert perfect["all", "skill"].value == pytest.approx(1, abs=0.03)
    assert perfect["all", "slope"].value == pytest.approx(1, abs=0.03)
    assert additive["all", "skill"].value == 0 and np.isnan(additive["all", "slope"].value)
    assert half["all", "skill"].value == pytest.approx(0.75, abs=0.03)
    assert half["all", "slope"].value == pytest.approx(2, abs=0.06)
    wild = metrics(measured, rng.normal(size=true.shape))
    assert wild["all", "skill"].high < 0 and abs(wild["all", "slope"].value) < 0.05


def test_terms_are_their_sums() -> None:
    true, measured, _ = world(pairs=3, genes=5)
    guess = true + 0.1
    above, below = x.skill_terms(measured.e, guess, measured.se)
    for p in range(3):
        cases = [(measured.e[p, g], guess[p, g], measured.se[p, g]) for g in range(5)]
        error, size = sum((e - g) ** 2 - s**2 for e, g, s in cases), sum(e**2 - s**2 for e, _, s in cases)
        assert below[p] == pytest.approx(size) and above[p] == pytest.approx(size - error)
    found = metrics(measured, guess)["all", "slope"].value
    assert found == pytest.approx((measured.e * guess).sum() / (guess**2).sum())


def test_auprc_of_chance_is_the_prevalence_and_of_truth_is_high() -> None:
    true, measured, rng = world()
    perfect, chance = metrics(measured, true), metrics(measured, rng.normal(size=true.shape))
    prevalence = perfect["all", "prevalence"].value
    assert perfect["all", "auprc"].value > 0.85  # some clear ones are small, and noise puts them behind others
    assert chance["all", "auprc"].value == pytest.approx(prevalence, abs=0.05)
    assert perfect["all", "sign_accuracy"].value > 0.95  # one in twenty is a false discovery, with any sign
    assert chance["all", "sign_accuracy"].value == pytest.approx(0.5, abs=0.07)
    assert metrics(measured, 0 * true)["all", "sign_accuracy"].value == 0.5
    assert metrics(measured, 0 * true)["all", "auprc"].value == pytest.approx(prevalence)


def test_average_precision_is_its_sum_over_thresholds() -> None:
    rng = np.random.default_rng(3)
    score, label = rng.integers(0, 6, size=40).astype(float), rng.uniform(size=40) < 0.4
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = score >= threshold
        recall = label[taken].sum() / label.sum()
        total += (recall - before) * label[taken].mean()
        before = recall
    assert x.average_precision(score, label) == pytest.approx(total)
    assert x.average_precision(np.zeros(40), label) == pytest.approx(label.mean())
    assert np.isnan(x.average_precision(score, np.zeros(40, bool)))


def test_the_resistant_stratum_stands_apart() -> None:
    true, measured, _ = world()
    found = metrics(measured, 0.5 * true)
    assert found["all", "skill"].combinations == 60 and found["resistant", "skill"].combinations == 20
    rows = x.resistant(measured.e, measured.se)
    above, below = x.skill_terms(measured.e, 0.5 * true, measured.se)
    assert found["resistant", "skill"].value == pytest.approx(above[rows].sum() / below[rows].sum())


def test_calls_are_shares_of_draws_and_noise() -> None:
    rng = np.random.default_rng(4)
    draws, se = rng.normal(size=(4000, 2, 3)), np.array([[0.0, 0.5, 1.0], [0.3, 0.0, 0.0]])
    calls = x.Calls.of(np.moveaxis(draws, 1, 0), se, (0.4,))
    noisy = draws[:, None] + se * rng.normal(size=(4000, 100, 2, 3))
    for k, size in enumerate((0.0, 0.4)):
        np.testing.assert_allclose(calls.above[k], (noisy > size).mean(axis=(0, 1)), atol=0.01)
        np.testing.assert_allclose(calls.below[k], (noisy < -size).mean(axis=(0, 1)), atol=0.01)
    np.testing.assert_allclose(calls.mean, draws.mean(axis=0))
    with pytest.raises(ValueError, match="combinations"):
        x.Calls.of(np.moveaxis(draws[:, :1], 1, 0), se)


def test_calls_of_a_true_posterior_are_reliable_and_of_a_sure_one_are_not() -> None:
    rng = np.random.default_rng(5)
    pairs, genes = 80, 60
    # interactions of sd 1 known up to sd 0.6: the posterior of each is Normal(centre, 0.6)
    centre = 0.8 * rng.normal(size=(pairs, genes))
    true = centre + 0.6 * rng.normal(size=centre.shape)
    se = np.full(centre.shape, 0.2)
    e = true + se * rng.normal(size=centre.shape)
    noise = rng.normal(size=(300, pairs, genes))
    for width, honest in ((0.6, True), (0.1, False)):
        calls = x.Calls.of(np.moveaxis(centre + width * noise, 1, 0), se, (0.5,))
        table = x.call_reliability(calls, e, resamples=300)
        assert set(table["call"]) == {"sign", "stronger", "synergy", "opposite"}
        error = 4 * np.sqrt(0.25 / table["cases"]) + 0.01
        off = np.abs(table["observed"] - table["predicted"]) > error
        assert off.any() != honest
    assert (table.groupby("call")["cases"].sum() == pairs * genes).all()
