"""The kernel between combinations and its ridge regression, against loops and refits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pvae_pyro.evaluation.kernel import InteractionRidge, PairKernel

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def kernel() -> PairKernel:
    scores = np.random.default_rng(0).normal(size=(6, 3))
    return PairKernel.from_scores(scores, np.ones(6, dtype=bool))


def doses(*conditions: dict[int, float]) -> np.ndarray:
    design = np.zeros((len(conditions), 6))
    for row, condition in enumerate(conditions):
        for target, dose in condition.items():
            design[row, target] = dose
    return design


def test_kernel_between_pairs_is_the_symmetric_product(kernel: PairKernel) -> None:
    scores = np.random.default_rng(0).normal(size=(6, 3))
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(scores, 2)]

    def g(a: int, b: int) -> float:
        return float(np.exp(-(np.linalg.norm(scores[a] - scores[b]) ** 2) / np.median(apart) ** 2))

    pairs = list(itertools.combinations(range(6), 2))
    design = doses(*({a: 1.0, b: 1.0} for a, b in pairs))
    expected = [[g(a, c) * g(b, d) + g(a, d) * g(b, c) for c, d in pairs] for a, b in pairs]
    np.testing.assert_allclose(kernel.between(design, design), expected, atol=1e-12)
    assert np.linalg.eigvalsh(kernel.between(design, design)).min() > -1e-10


def test_a_triple_is_the_sum_of_its_pairs_and_doses_multiply(kernel: PairKernel) -> None:
    trained = doses({0: 1, 1: 1}, {2: 1, 4: 1}, {1: 1, 3: 1, 5: 1})
    pairs = kernel.between(doses({0: 1, 1: 1}, {0: 1, 2: 1}, {1: 1, 2: 1}), trained)
    np.testing.assert_allclose(kernel.between(doses({0: 1, 1: 1, 2: 1}), trained)[0], pairs.sum(axis=0))
    np.testing.assert_allclose(kernel.between(doses({0: 0.5, 1: 3.0}), trained)[0], 1.5 * pairs[0])


def test_controls_singles_and_unusable_targets_have_no_interaction() -> None:
    rng = np.random.default_rng(1)
    usable = np.array([True, True, True, True, True, False])
    kernel = PairKernel.from_scores(rng.normal(size=(6, 2)), usable)
    design = doses({0: 1, 1: 1}, {2: 1, 3: 1})
    ridge = InteractionRidge.fit(kernel, design, rng.normal(size=(2, 4)), 0.5)
    assert not ridge.predict(doses({}, {2: 1.0}, {1: 1, 5: 1})).any()
    assert ridge.predict(doses({0: 1, 2: 1})).any()


def test_leave_one_out_is_a_refit_without_the_row(kernel: PairKernel) -> None:
    rng = np.random.default_rng(2)
    design = doses(*({a: 1.0, b: 1.0} for a, b in itertools.combinations(range(5), 2)))
    residuals = rng.normal(size=(10, 7))
    ridge = InteractionRidge.fit(kernel, design, residuals, 0.5)
    for row in range(10):
        rest = np.arange(10) != row
        refit = InteractionRidge.fit(kernel, design[rest], residuals[rest], 0.5)
        np.testing.assert_allclose(refit.predict(design[row : row + 1])[0], ridge.left_out[row], atol=1e-10)


def test_penalty_runs_from_interpolation_to_zero(kernel: PairKernel) -> None:
    design = doses({0: 1, 1: 1}, {2: 1, 3: 1}, {4: 1, 5: 1})
    residuals = np.random.default_rng(3).normal(size=(3, 5))
    exact = InteractionRidge.fit(kernel, design, residuals, 1e-10)
    np.testing.assert_allclose(exact.predict(design), residuals, atol=1e-6)
    assert np.abs(InteractionRidge.fit(kernel, design, residuals, 1e10).predict(design)).max() < 1e-8


@pytest.mark.parametrize("columns", [0, 2])
def test_targets_that_cannot_be_told_apart_share_one_interaction(columns: int) -> None:
    kernel = PairKernel.from_scores(np.zeros((6, columns)), np.ones(6, dtype=bool))
    design = doses({0: 1, 1: 1}, {2: 1, 3: 1})
    ridge = InteractionRidge.fit(kernel, design, np.array([[1.0], [3.0]]), 1e-9)
    assert ridge.predict(doses({4: 1, 5: 1}))[0, 0] == pytest.approx(2.0, abs=1e-6)
