"""Distances between two sets of cells, as pure functions, for methods that draw cells.

Give coordinates fitted on training cells (such as principal components), equally many cells of either set, and print two
split halves and control against measured beside them: a distance between cells means little on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist

Array = NDArray[np.float64]

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def energy_distance(first: ArrayLike, second: ArrayLike) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` of cells (n, K) and (m, K), Euclidean, unbiased (a U-statistic).

    0 for two samples of one law on average, so it can be negative. The squared norm, scPerturb's default, would only see
    the gap of the means. Raises ValueError for fewer than two cells or other columns.
    """
    x, y = _cells(first, second)
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def median_bandwidth(cells: ArrayLike) -> float:
    """Median distance between two cells (n, K), the unit of ``mmd``; take it from training cells."""
    return float(np.median(pdist(np.asarray(cells, float))))


def mmd(
    first: ArrayLike, second: ArrayLike, bandwidth: float, factors: Sequence[float] = BANDWIDTHS
) -> float:
    """Squared maximum mean discrepancy of cells (n, K) and (m, K), unbiased, mean over Gaussian kernels.

    ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``, ``k = mean_f exp(-|x - y|^2 / (2 (f bandwidth)^2))``. A bandwidth far above
    the distances between cells sees their means only. Raises ValueError for fewer than two cells, other columns or a
    bandwidth that is not positive. Source: Gretton et al. 2012.
    """
    x, y = _cells(first, second)
    if not bandwidth > 0:
        raise ValueError(f"a kernel needs a bandwidth above 0, not {bandwidth}")

    def kernel(square: Array) -> float:
        return float(np.mean([np.exp(-square / (2 * (f * bandwidth) ** 2)).mean() for f in factors]))

    inside = kernel(pdist(x, "sqeuclidean")) + kernel(pdist(y, "sqeuclidean"))
    return inside - 2 * kernel(cdist(x, y, "sqeuclidean"))


def spread_ratio(predicted_variance: ArrayLike, variance: ArrayLike) -> tuple[float, float, float]:
    """Median, 5 % and 95 % quantile over genes of predicted over measured variance (G,); far below 1 is a collapse.

    Genes that do not vary in the measured cells are left out; nan where none is left.
    """
    guess, real = np.asarray(predicted_variance, float), np.asarray(variance, float)
    ratio = guess[real > 0] / real[real > 0]
    if not ratio.size:
        return float("nan"), float("nan"), float("nan")
    middle, low, high = np.quantile(ratio, [0.5, 0.05, 0.95])
    return float(middle), float(low), float(high)


def _cells(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(first, float), np.asarray(second, float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"two cells or more of the same columns are needed on either side: {x.shape}, {y.shape}"
        )
    return x, y
