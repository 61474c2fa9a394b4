"""Coefficients of singles in their pair: exact where most genes are, inert to the rest, honest about noise."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import gi_coefficients as gi
from pvae_pyro.summary import ConditionSummary

pytestmark = pytest.mark.filterwarnings("error")


def summary(names: list[str], targets: tuple[str, ...], mean: np.ndarray, n: int, sd: float = 1.0) -> ConditionSummary:
    design = np.array([[float(t in name.split("+")) for t in targets] for name in names], np.float32)
    shape = mean.shape
    return ConditionSummary(
        conditions=tuple(names), targets=targets, design=design, n_cells=np.full(len(names), n), mean=mean,
        variance=np.full(shape, sd**2), halves=np.zeros((2, *shape)), genes=np.array([f"g{i}" for i in range(shape[1])]),
    )  # fmt: skip


@pytest.mark.parametrize("truth", [(1.0, 1.0), (0.7, -0.4), (1.3, 0.05)])
def test_a_fifth_of_wild_genes_changes_nothing(truth: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400))
    y = truth[0] * a + truth[1] * b
    wild = rng.choice(400, 80, replace=False)
    y[wild] = 30 + 10 * rng.normal(size=80)
    assert gi.theil_sen(y, a, b) == pytest.approx(truth, abs=1e-6)
    plain = np.linalg.lstsq(np.column_stack([a, b]), y, rcond=None)[0]
    assert np.abs(plain - truth).max() > 0.2, "least squares must have been moved by them"
    assert gi.theil_sen(y, a, b, seed=1) == gi.theil_sen(y, a, b, seed=1)


def test_words_for_a_pair_are_their_formulas() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 50))
    found = gi.coefficients(0.8 * a - 0.2 * b, a, b)
    assert found["magnitude"] == pytest.approx(np.hypot(0.8, 0.2), abs=1e-6)
    assert found["dominance"] == pytest.approx(np.log10(4), abs=1e-5), "opposite signs have a dominance, too"
    assert found["fit"] == pytest.approx(1)
    turned = gi.coefficients(0.8 * a - 0.2 * b, b, a)
    assert (turned["c1"], turned["c2"]) == pytest.approx((found["c2"], found["c1"]), abs=1e-6)
    assert np.isnan(gi.coefficients([1.0], [1.0], [2.0])["c1"])


def test_additive_pairs_look_as_additive_as_their_noise_allows() -> None:
    rng = np.random.default_rng(5)
    targets, genes, n = ("A", "B", "C", "D"), 600, 40
    truth = np.vstack([np.zeros(genes), rng.normal(size=(4, genes)) * 0.3])
    named = {"A+B": (1, 2), "A+C": (1, 3), "B+D": (2, 4), "C+D": (3, 4)}
    doubles = np.array([truth[i] + truth[j] for i, j in named.values()])
    noise = 1 / np.sqrt(n)
    training = summary(["control", *targets], targets, 5 + truth + noise * rng.normal(size=truth.shape), n)
    pairs = summary(list(named), targets, 5 + doubles + noise * rng.normal(size=doubles.shape), n)
    table = gi.gi_table(pairs, training)
    assert table["condition"].tolist() == list(named) and (table["genes"] == genes).all()
    # squares: 0.09 of effects, 0.025 of noise for each condition, that of the control in common: c = 0.115 / 0.165
    assert table["magnitude"].mean() == pytest.approx(np.sqrt(2) * 0.115 / 0.165, abs=0.05)
    assert table["additive_magnitude"].to_numpy() == pytest.approx(table["magnitude"].to_numpy(), abs=0.2)
    assert table["additive_magnitude"].mean() == pytest.approx(table["magnitude"].mean(), abs=0.1)
    half = gi.gi_table(pairs, training, predicted=5 + 0.5 * doubles)
    assert half["magnitude"].mean() == pytest.approx(np.sqrt(2) * (0.045 + 0.025) / 0.165, abs=0.05)
    exact = gi.gi_table(
        summary(list(named), targets, 5 + doubles, 10**9),
        summary(["control", *targets], targets, 5 + truth, 10**9), genes=100,
    )  # fmt: skip
    assert exact["magnitude"].to_numpy() == pytest.approx(np.full(4, np.sqrt(2)), abs=1e-6)
    assert exact["additive_magnitude"].to_numpy() == pytest.approx(np.full(4, np.sqrt(2)), abs=1e-3)
    assert (exact["genes"] == 100).all()


def test_genes_are_chosen_by_the_singles_alone() -> None:
    rng = np.random.default_rng(3)
    mean = np.zeros((3, 30))
    mean[1, :5], mean[2, 5:9] = 2.0, -2.0
    training = summary(["control", "A", "B"], ("A", "B"), mean, 25)
    pair = mean[1] + mean[2]
    pair[20:] = 50 * rng.normal(size=10)
    found = gi.gi_table(summary(["A+B"], ("A", "B"), pair[None], 25), training, genes=9)
    assert found.loc[0, "genes"] == 9 and found.loc[0, "magnitude"] == pytest.approx(np.sqrt(2))
    with pytest.raises(InputError, match="both its targets trained alone"):
        gi.gi_table(summary(["A"], ("A",), pair[None], 25), training)
