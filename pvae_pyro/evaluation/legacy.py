"""Legacy scores of published code, under names that say so: for comparison with papers, never to choose a model.

Cell errors reward collapse: of independent draws of one law ``E|xhat - x|^2 = 2 tr Cov``, of its mean alone ``tr Cov``, so
a perfect sampler is worse by sqrt(2) than a constant. `Scores.paired` refuses these names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from pvae_pyro.evaluation.points import r2_mean

Array = NDArray[np.float64]

LEGACY = ("legacy_r2_mean", "legacy_mse_top20_de")
"""Legacy metrics that pseudobulks allow; those of cells are functions of this file alone."""
GEARS_GENES = 20


def rmse_cell_rel(predicted: ArrayLike, cells: ArrayLike) -> float:
    """``sqrt(mean (xhat - x)^2 / mean x^2)`` of unpaired cells (n, G); nan for cells that are all zero.

    discrepancy_vae takes it per batch of 32 cells. Raises ValueError for shapes that disagree.
    """
    x = np.asarray(cells, float)
    size = float((x**2).mean())
    return rmse_cell_raw(predicted, cells) / float(np.sqrt(size)) if size > 0 else float("nan")


def rmse_cell_raw(predicted: ArrayLike, cells: ArrayLike) -> float:
    """``sqrt(mean (xhat - x)^2)`` of unpaired cells (n, G). Raises ValueError for shapes that disagree."""
    xhat, x = np.asarray(predicted, float), np.asarray(cells, float)
    if xhat.shape != x.shape:
        raise ValueError(
            f"the legacy error needs as many predicted cells as measured ones: {xhat.shape}, {x.shape}"
        )
    return float(np.sqrt(((xhat - x) ** 2).mean()))


def mmd_legacy(predicted: ArrayLike, cells: ArrayLike) -> float:
    """MMD of n cells on either side, (n, G), as discrepancy_vae prints it: ``mean(XX + YY - XY - YX)``.

    The kernel is the sum of ten ``exp(-|x - y|^2 / b)``, b = 31.25, 62.5, ... 16,000 (sigma 1000, in the middle). It
    counts each cell with itself, so that it is above 0 for two samples of one law, and a kernel that is wide beside
    the distances of cells sees little but means. Raises ValueError for shapes that disagree.
    """
    xhat, x = np.asarray(predicted, float), np.asarray(cells, float)
    if xhat.shape != x.shape:
        raise ValueError(f"the legacy MMD needs as many predicted cells as measured ones: {xhat.shape}, {x.shape}")

    def kernel(first: Array, second: Array) -> Array:
        square = cdist(first, second, "sqeuclidean")
        return np.asarray(sum(np.exp(-square / (31.25 * 2.0**i)) for i in range(10)))

    return float((kernel(xhat, xhat) + kernel(x, x) - 2 * kernel(xhat, x)).mean())


def r2_cells(predicted: ArrayLike, cells: ArrayLike) -> float:
    """Coefficient of determination of unpaired cells (n, G), genes pooled; nan for cells that do not vary.

    ``1 - sum (x - xhat)^2 / sum (x - mean of its gene)^2``: 0 for the cells' own mean, below 0 for any other constant,
    -1 for a perfect sampler of many cells.
    """
    xhat, x = np.asarray(predicted, float), np.asarray(cells, float)
    total = float(((x - x.mean(axis=0)) ** 2).sum())
    return 1 - float(((x - xhat) ** 2).sum()) / total if total > 0 else float("nan")


def r2_mean_legacy(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """``max(r2_score(Xhat, X), 0)`` of profiles (C, G), with the two swapped, as discrepancy_vae calls it.

    The denominator is the variance of the *prediction*, and what is worse than its mean counts as 0.
    """
    return np.maximum(r2_mean(truth, predicted), 0.0)


def mse_top_de(
    predicted: ArrayLike,
    truth: ArrayLike,
    variance: ArrayLike,
    n_cells: ArrayLike,
    control: tuple[ArrayLike, ArrayLike, int],
    count: int = GEARS_GENES,
) -> Array:
    """Mean squared error on each condition's ``count`` most changed genes, in the manner of GEARS.

    predicted, truth, variance (C, G), n_cells (C,); control: mean, variance (G,) and number of cells. Genes are those of
    ``top_de_genes``: they look at the truth and leave everything else out. nan where no gene is left.
    """
    xhat, x = np.asarray(predicted, float), np.asarray(truth, float)
    values = np.full(len(x), np.nan)
    for row, genes in enumerate(top_de_genes(x, variance, n_cells, control, count)):
        if len(genes):
            values[row] = ((xhat[row, genes] - x[row, genes]) ** 2).mean()
    return values


def top_de_genes(
    truth: ArrayLike,
    variance: ArrayLike,
    n_cells: ArrayLike,
    control: tuple[ArrayLike, ArrayLike, int],
    count: int = GEARS_GENES,
) -> list[NDArray[np.int64]]:
    """Each condition's ``count`` most changed genes, largest first, in the manner of GEARS.

    truth, variance (C, G), n_cells (C,); control: mean, variance (G,) and number of cells. The order is that of Welch's
    |t| against control, ties to the first gene, among genes that are non-zero in the condition or zero in both
    ("non-dropout").
    """
    x, s2 = np.asarray(truth, float), np.asarray(variance, float)
    x0, s20, n0 = np.asarray(control[0], float), np.asarray(control[1], float), float(control[2])
    error = np.sqrt(s2 / np.asarray(n_cells, float)[:, None] + s20 / n0)
    size = np.abs(np.divide(x - x0, error, out=np.zeros_like(x), where=error > 0))
    allowed = [np.flatnonzero(row) for row in (x != 0) | (x0 == 0)]
    return [g[np.argsort(-size[i, g], kind="stable")[:count]] for i, g in enumerate(allowed)]
