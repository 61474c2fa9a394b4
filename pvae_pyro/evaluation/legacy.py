"""Legacy scores of published code, under names that say so: for comparison with papers, never to choose a model.

Cell errors reward collapse: of independent draws of one law ``E|xhat - x|^2 = 2 tr Cov``, of its mean alone ``tr Cov``, so
a perfect sampler is worse by sqrt(2) than a constant. `Scores.paired` refuses these names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    predicted, truth, variance (C, G), n_cells (C,); control: mean, variance (G,) and number of cells. The order is that
    of Welch's |t| against control, ties to the first gene, among genes that are non-zero in the condition or zero in
    both ("non-dropout"). It looks at the truth and leaves everything else out. nan where no gene is left.
    """
    xhat, x, s2 = (np.asarray(one, float) for one in (predicted, truth, variance))
    x0, s20, n0 = np.asarray(control[0], float), np.asarray(control[1], float), float(control[2])
    error = np.sqrt(s2 / np.asarray(n_cells, float)[:, None] + s20 / n0)
    size = np.abs(np.divide(x - x0, error, out=np.zeros_like(x), where=error > 0))
    allowed = (x != 0) | (x0 == 0)
    values = np.full(len(x), np.nan)
    for row in range(len(x)):
        genes = np.flatnonzero(allowed[row])
        genes = genes[np.argsort(-size[row, genes], kind="stable")[:count]]
        if len(genes):
            values[row] = ((xhat[row, genes] - x[row, genes]) ** 2).mean()
    return values
