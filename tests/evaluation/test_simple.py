"""Simple rules on data whose answer is known, and positive controls that must look like ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import baselines as b
from pvae_pyro.evaluation import positive as pos
from pvae_pyro.evaluation import simple as s
from pvae_pyro.evaluation.points import dynamic_range
from pvae_pyro.evaluation.scores import evaluate

pytestmark = pytest.mark.filterwarnings("error")

CONTROL = np.array([1.0, 2.0, 0.5, 3.0])
SHIFT = {
    "A": np.array([1.0, 0.0, -0.3, 0.2]),
    "B": np.array([-2.0, -0.5, 0.4, 0.0]),
    "C": np.array([1.0, 0.1, -0.2, 0.2]),
}
TARGETS = ("A", "B", "C", "D")


@pytest.fixture
def training(make_summary):  # type: ignore[no-untyped-def]
    """Three singles, one pair; D was never trained alone."""
    means = {"control": CONTROL} | {name: CONTROL + d for name, d in SHIFT.items()}
    means["A+B"] = CONTROL + np.array([0.5, 0.5, 0.5, -1.0])
    return make_summary(means, [90, 50, 100, 50, 200], 0.2, targets=TARGETS)


def test_simple_rules_are_what_they_say(training) -> None:  # type: ignore[no-untyped-def]
    found = b.baselines(training, [[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]], 40)
    pair = training.mean[4]
    singles = [CONTROL + SHIFT[name] for name in "ABC"]
    centre = (sum(singles) + pair) / 4
    np.testing.assert_allclose(found[s.TRAIN_MEAN].mean, [centre] * 3)
    cells = (50 * singles[0] + 100 * singles[1] + 50 * singles[2] + 200 * pair) / 400
    np.testing.assert_allclose(found[s.CELL_MEAN].mean, [cells] * 3)
    np.testing.assert_allclose(found[s.COMBINATIONS_MEAN].mean, [pair] * 3)
    # the matching mean puts the training mean where a single is missing
    expected = [(singles[1] + singles[2]) / 2, (singles[0] + centre) / 2, singles[1]]
    np.testing.assert_allclose(found[s.MATCHING_MEAN].mean, expected)
    largest = [[-2.0, -0.5, 0.4, 0.2], SHIFT["A"], SHIFT["B"]]
    np.testing.assert_allclose(found[s.MAX_EFFECT].mean, CONTROL + np.array(largest))


def test_equal_sizes_of_opposite_sign_take_the_first_target(make_summary) -> None:  # type: ignore[no-untyped-def]
    screen = make_summary({"control": [0.0, 0.0], "A": [1.0, -2.0], "B": [-1.0, 2.0]})
    np.testing.assert_array_equal(b.baselines(screen, [[1, 1]], 9)[s.MAX_EFFECT].mean, [[1.0, -2.0]])


def test_nearest_pair_has_the_partner_most_alike(training) -> None:  # type: ignore[no-untyped-def]
    found = b.baselines(training, [[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]], 40)[s.NEAREST].mean
    # B+C shares B with A+B, and C is alike A; lengths of the sums set the size
    lengths = [np.linalg.norm(SHIFT[x] + SHIFT["B"]) for x in "CA"]
    np.testing.assert_allclose(found[0], CONTROL + lengths[0] / lengths[1] * (training.mean[4] - CONTROL))
    np.testing.assert_allclose(found[1], CONTROL + SHIFT["C"])  # nothing shares a target: additive
    np.testing.assert_allclose(found[2], CONTROL + SHIFT["A"])


def test_rules_of_combinations_need_some(training) -> None:  # type: ignore[no-untyped-def]
    alone = training.restrict(["control", "A", "B", "C"])
    found = b.baselines(alone, [[1, 1, 0]], 40)
    assert s.MAX_EFFECT in found and not {s.NEAREST, s.COMBINATIONS_MEAN, s.BILINEAR_RIDGE} & set(found)


def test_bilinear_ridge_is_its_normal_equations(training) -> None:  # type: ignore[no-untyped-def]
    known = dataclasses.replace(training, genes=np.array(["B", "x", "C", "A"]))
    found = b.baselines(known, [[0, 1, 1, 0]], 40)[s.BILINEAR_RIDGE].mean[0]
    y = known.mean[1:]
    centre = y.mean(axis=0)
    _, _, v = np.linalg.svd(y - centre, full_matrices=False)
    scores = v.T
    embedded = np.array([scores[3], scores[0], scores[2], np.zeros(4)])
    p = known.design[1:] @ embedded
    # W minimises |Y - G W P'|^2 + penalty |W|^2, entry by entry of the vector of W
    design = np.kron(p, scores)
    penalty = s.RIDGE * np.trace(p.T @ p) / 4
    w = np.linalg.solve(design.T @ design + penalty * np.eye(16), design.T @ (y - centre).reshape(-1))
    asked = embedded[1] + embedded[2]
    np.testing.assert_allclose(found, centre + np.kron(asked[None], scores) @ w, atol=1e-10)


def test_order_of_targets_does_not_matter(training) -> None:  # type: ignore[no-untyped-def]
    first = b.baselines(training, [[0, 1, 1, 0]], 40)
    second = b.baselines(training, [[1, 0, 1]], 40, targets=("C", "A", "B"))
    for name in (s.MATCHING_MEAN, s.MAX_EFFECT, s.NEAREST):
        np.testing.assert_allclose(first[name].mean, second[name].mean)


def test_positive_controls_use_the_range_of_a_metric(make_summary) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    genes = 200
    control = rng.uniform(1, 3, size=genes)
    shift = np.where(rng.uniform(size=(6, genes)) < 0.3, rng.normal(size=(6, genes)), 0.0)
    names = [f"T{i}" for i in range(6)]
    training = make_summary({"control": control} | dict(zip(names, control + shift, strict=True)), 200, 0.5)
    halves = control + shift + rng.normal(size=(2, 6, genes)) * np.sqrt(0.5 / 100)
    truth = make_summary(dict(zip(names, halves.mean(axis=0), strict=True)), 200, 0.5, halves=halves)
    half, controls = pos.positive_controls(truth, training)
    assert half.n_cells.tolist() == [100] * 6
    reference = training.mean[0], training.variance[0], 200
    rows = evaluate(half, controls, reference, training=training).table(
        metrics=["delta_pearson", "l2_top1000"], resamples=50
    )
    value = rows.set_index(["metric", "method"])["mean"]
    for metric, perfect in (("delta_pearson", 1.0), ("l2_top1000", 0.0)):
        share = dynamic_range(value[metric, pos.DUPLICATE], value[metric, s.TRAIN_MEAN], perfect)
        assert 0.5 < share < 1
    # interpolated: the measurement where a gene moved for sure, the training mean where it did not move at all
    one, two, none = (controls[name].mean for name in (pos.INTERPOLATED, pos.DUPLICATE, s.TRAIN_MEAN))
    far, still = np.abs(halves[0] - control) > 1, np.abs(halves[0] - control) < 0.01
    assert far.sum() > 20 and still.sum() > 20
    np.testing.assert_allclose(one[far], two[far], atol=1e-9)
    assert (np.abs(one - none)[still] <= 0.2 * np.abs(two - none)[still] + 1e-12).all()
    assert ((one - two) * (one - none) <= 1e-15).all()


def test_what_cannot_be_halved_is_refused(make_summary) -> None:  # type: ignore[no-untyped-def]
    training = make_summary({"control": [0.0, 0.0], "A": [1.0, 0.0]})
    with pytest.raises(InputError, match="four cells"):
        pos.positive_controls(make_summary({"A": [1.0, 0.0]}, 3), training)
    with pytest.raises(InputError, match="no perturbation"):
        pos.positive_controls(make_summary({"A": [1.0, 0.0]}), training.restrict(["control"]))
