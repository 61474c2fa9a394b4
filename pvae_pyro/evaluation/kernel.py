"""Kernel ridge regression of what combinations do beyond the sum of their targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairKernel:
    """A kernel between combinations, from a product Gaussian kernel symmetric in the two targets of a pair.

    ``k(AB, CD) = g(A,C) g(B,D) + g(A,D) g(B,C)``, ``g(A,B) = exp(-|z_A - z_B|^2 / bandwidth^2)`` on scores
    z (T, K). A combination is the sum over its pairs, weighted by the product of their doses, so that three
    and more targets follow from the pairs; pairs with an unusable target (``usable`` (T,) false) count as
    zero.
    """

    gaussian: Array

    @classmethod
    def from_scores(cls, scores: Array, usable: NDArray[np.bool_]) -> PairKernel:
        """Bandwidth: the median distance between the scores of two usable targets (1 where that is 0)."""
        square = (scores**2).sum(axis=1)
        distance2 = np.maximum(square[:, None] + square - 2 * scores @ scores.T, 0.0)
        known = np.flatnonzero(usable)
        upper = np.triu_indices(len(known), 1)
        between = distance2[np.ix_(known, known)][upper]
        bandwidth2 = float(np.median(np.sqrt(between))) ** 2 if len(between) else 0.0
        gaussian = np.exp(-distance2 / (bandwidth2 if bandwidth2 > 0 else 1.0))
        return cls(gaussian * usable[:, None] * usable)

    def between(self, first: Array, second: Array) -> Array:
        """Kernel (N, M) between combinations given by their doses (N, T) and (M, T)."""
        (row, a, b, weight), (column, c, d, other) = _pairs(first), _pairs(second)
        g = self.gaussian
        pairwise = g[np.ix_(a, c)] * g[np.ix_(b, d)] + g[np.ix_(a, d)] * g[np.ix_(b, c)]
        total = np.zeros((len(first), len(second)))
        np.add.at(total, (row[:, None], column[None, :]), pairwise * weight[:, None] * other)
        return total


@dataclass(frozen=True, eq=False)
class InteractionRidge:
    """Residuals of trained combinations carried to others: ``K(new, train) (K + penalty I)^-1 residuals``."""

    kernel: PairKernel
    trained: Array
    coefficients: Array
    left_out: Array  # (N, G) prediction of each training residual from the others

    @classmethod
    def fit(cls, kernel: PairKernel, design: Array, residuals: Array, penalty: float) -> InteractionRidge:
        """design (N, T) doses, residuals (N, G); leave-one-out is exact, by the inverse's diagonal."""
        inverse = np.linalg.inv(kernel.between(design, design) + penalty * np.eye(len(design)))
        coefficients = inverse @ residuals
        left_out = residuals - coefficients / np.diag(inverse)[:, None]
        return cls(kernel, design, coefficients, left_out)

    def predict(self, design: Array) -> Array:
        """Interaction (C, G) of combinations with doses (C, T); zero for controls and single targets."""
        return np.asarray(self.kernel.between(design, self.trained) @ self.coefficients)


def _pairs(design: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Array]:
    """All pairs of targets in each row: row, first target, second target, product of doses."""
    entries: list[tuple[int, int, int]] = []
    for row, doses in enumerate(design):
        present = np.flatnonzero(doses)
        entries += [(row, int(p), int(q)) for i, p in enumerate(present) for q in present[i + 1 :]]
    table = np.array(entries, dtype=np.int64).reshape(-1, 3)
    rows, first, second = table[:, 0], table[:, 1], table[:, 2]
    return rows, first, second, design[rows, first] * design[rows, second]
