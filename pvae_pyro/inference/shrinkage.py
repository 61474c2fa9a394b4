"""Optimal singular-value shrinkage of condition shifts measured with unequal noise.

The warm start takes its loadings from here, and the shrunk additive baselines their shifts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShrunkShifts:
    """Low-rank shifts: ``shifts = scores @ loadings``, plus genes without noise left as they were.

    shifts (P, G) on the gene scale; left (P, R) and right (R, G) orthonormal singular vectors of the
    noise-scaled matrix; values (R,) its shrunk singular values, largest first; row_scale (P,) =
    sqrt(cells); column_scale (G,) = noise sd of a gene in one cell.
    """

    shifts: Array
    left: Array
    values: Array
    right: Array
    row_scale: Array
    column_scale: Array

    @property
    def rank(self) -> int:
        """Number of singular values above the noise edge."""
        return len(self.values)

    @property
    def loadings(self) -> Array:
        """Directions on the gene scale, (R, G)."""
        return self.right * self.column_scale

    @property
    def scores(self) -> Array:
        """Coordinates of every row along the loadings, (P, R)."""
        return self.left * self.values / self.row_scale[:, None]

    def project(self, shifts: ArrayLike) -> Array:
        """Least-squares coordinates (N, R), on the noise scale, of other shifts (N, G)."""
        known = self.column_scale > 0
        scaled = np.asarray(shifts, dtype=float)[:, known] / self.column_scale[known]
        return np.asarray(scaled @ self.right[:, known].T)


def shrink(shifts: ArrayLike, n_cells: ArrayLike, noise_sd: ArrayLike) -> ShrunkShifts:
    """Denoise shifts (P, G), row p being a mean over ``n_cells[p]`` cells with sd ``noise_sd[g]`` each.

    The matrix ``shift * sqrt(n) / sd`` is signal plus unit noise. With y its singular values in units of
    sqrt(longer side) and beta = shorter / longer side, y is kept where it exceeds 1 + sqrt(beta) and
    replaced by sqrt((y^2 - beta - 1)^2 - 4 beta) / y, which is optimal in Frobenius norm (Gavish & Donoho
    2017, doi:10.1109/TIT.2017.2653801). Genes of zero noise sd take no part and keep their shift. Raises
    ValueError when shapes disagree or a cell count is not positive.
    """
    matrix = np.asarray(shifts, dtype=float)
    cells, sd = np.asarray(n_cells, dtype=float), np.asarray(noise_sd, dtype=float)
    if matrix.ndim != 2 or cells.shape != matrix.shape[:1] or sd.shape != matrix.shape[1:]:
        raise ValueError(
            f"shifts {matrix.shape} need (P,) cell counts and (G,) sds, not {cells.shape}, {sd.shape}"
        )
    if (cells <= 0).any():
        raise ValueError("every shift needs a positive number of cells")
    row_scale = np.sqrt(cells)
    known = sd > 0
    right = np.zeros((0, matrix.shape[1]))
    left, values = np.zeros((len(matrix), 0)), np.zeros(0)
    if known.any() and len(matrix):
        u, s, vt = np.linalg.svd(matrix[:, known] * row_scale[:, None] / sd[known], full_matrices=False)
        longer = max(len(matrix), int(known.sum()))
        beta = min(len(matrix), int(known.sum())) / longer
        y = s / np.sqrt(longer)
        keep = y > 1 + np.sqrt(beta)
        y = y[keep]
        # the two factors keep precision at the edge, where (y^2 - beta - 1)^2 and 4 beta cancel
        inner = (y**2 - beta - 1 - 2 * np.sqrt(beta)) * (y**2 - beta - 1 + 2 * np.sqrt(beta))
        values = np.sqrt(np.maximum(inner, 0)) / y * np.sqrt(longer)
        left, right = u[:, keep], np.zeros((len(y), matrix.shape[1]))
        right[:, known] = vt[keep]
    shrunk = np.where(known, (left * values) @ right * sd / row_scale[:, None], matrix)
    return ShrunkShifts(shrunk, left, values, right, row_scale, sd)


def noise_sd(variance: ArrayLike, n_cells: ArrayLike) -> Array:
    """Mean over conditions of the within-condition sd of a gene, (G,), from variances (C, G) and counts (C,).

    Conditions of one cell have no variance and are left out; zeros if no other is there.
    """
    several = np.asarray(n_cells) >= 2
    values = np.asarray(variance, dtype=float)
    if not several.any():
        return np.zeros(values.shape[1])
    return np.asarray(np.sqrt(values[several]).mean(axis=0))
