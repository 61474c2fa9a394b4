"""What varies between cells of one condition: condition and batch means removed, leading directions kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

Array = NDArray[np.float64]

LEAST_SD = 0.1  # of the median gene's sd: below it small noise would outweigh all genes; screens looked at have 0.19 or more


@dataclass(frozen=True, eq=False)
class CellVariation:
    """Condition means, batch effects and the within-condition covariance, as sd (I + low rank) sd.

    means (C, G): expression of a condition at the average batch; batch_effects (B, G), zero on average over cells;
    sd (G,) within condition; directions (G, K) orthonormal and values (K,): leading eigenvectors of the within-condition
    correlation; rest: the common eigenvalue of what remains.
    """

    means: Array
    batch_effects: Array
    sd: Array
    directions: Array
    values: Array
    rest: float

    def whiten(self, shifts: Array) -> Array:
        """Shifts (N, G) in units in which the cells of one condition have unit covariance."""
        return self._root(shifts / self.sd)

    def unwhiten(self, whitened: Array) -> Array:
        """Inverse of `whiten`."""
        along = whitened @ self.directions
        z = (whitened - along @ self.directions.T) * np.sqrt(self.rest) + (
            along * np.sqrt(self.values)
        ) @ self.directions.T
        return z * self.sd

    def _root(self, z: Array) -> Array:
        """Rows times the inverse square root of the within-condition correlation."""
        along = z @ self.directions
        return (z - along @ self.directions.T) / np.sqrt(self.rest) + (
            along / np.sqrt(self.values)
        ) @ self.directions.T

    @property
    def common(self) -> Array:
        """Share of each gene's variance (genes,) that the leading directions carry, at most 0.9."""
        return np.minimum((self.directions**2 * np.maximum(self.values - self.rest, 0)).sum(axis=1), 0.9)

    def coordinates(self, axes: Array) -> Array:
        """The map (G, K) from expression to its place along whitened `axes` (K, G): x @ coordinates is whiten(x) @ axes.T."""
        return (self._root(axes) / self.sd).T

    def shared_variance(self, axes: Array) -> Array:
        """Share (K,) of the cells' variance along orthonormal whitened `axes` (K, G) that genes do not have each for itself.

        The rest is measurement noise, independent between genes.
        """
        return 1 - (self._root(axes) ** 2 * (1 - self.common)).sum(axis=1)

    def background_outside(self, axes: Array) -> Array:
        """Loadings (K', G) of what varies between cells in common, with the span of whitened `axes` taken out."""
        loadings = (self.directions * np.sqrt(np.maximum(self.values - self.rest, 0))).T * self.sd
        whitened = self.whiten(loadings)
        return self.unwhiten(whitened - (whitened @ axes.T) @ axes)


def cell_variation(
    expression: sp.csr_matrix,
    condition: NDArray[np.int64],
    batch: NDArray[np.int64],
    n_directions: int,
    n_batches: int | None = None,
) -> CellVariation:
    """Least squares of expression (cells, genes) on condition and batch, then principal directions of what is left.

    Never makes the matrix dense: residuals are a sparse matrix minus a low-rank one, seen through a linear operator.
    Genes without variation get the smallest positive sd, and none gets less than a tenth of the median gene's, so that what
    hardly varies within conditions carries no weight. A batch without a cell here (of
    `n_batches`) counts as average.
    """
    n, n_genes = expression.shape
    x = expression.astype(np.float64)
    present, code = np.unique(batch, return_inverse=True)
    n_conditions, n_present = int(condition.max()) + 1, len(present)
    rows = np.arange(n)
    of_condition = sp.csr_matrix((np.ones(n), (rows, condition)), shape=(n, n_conditions))
    of_batch = sp.csr_matrix((np.ones(n), (rows, code)), shape=(n, n_present))
    share = np.asarray(of_batch.mean(axis=0)).ravel()
    centred = of_batch[:, 1:] if n_present > 1 else of_batch[:, :0]
    design = sp.hstack([of_condition, centred]).tocsr()
    gram = (design.T @ design).toarray() + 1e-8 * np.eye(
        design.shape[1]
    )  # the ridge only breaks exact confounding
    coefficients = np.linalg.solve(gram, np.asarray((design.T @ x).todense()))
    effects = np.vstack([np.zeros(n_genes), coefficients[n_conditions:]])
    average = share @ effects
    means = coefficients[:n_conditions] + average
    batch_effects = np.zeros((n_batches or int(batch.max()) + 1, n_genes))
    batch_effects[present] = effects - average

    total = np.asarray(x.multiply(x).sum(axis=0)).ravel()
    explained = np.einsum("ij,ij->j", coefficients, np.asarray((design.T @ x).todense()))
    freedom = max(n - design.shape[1], 1)
    variance = np.maximum(total - explained, 0) / freedom
    positive = variance[variance > 1e-10]
    floor = positive.min() if len(positive) else 1.0
    sd = np.sqrt(np.maximum(variance, floor))
    sd = np.maximum(sd, LEAST_SD * np.median(sd))

    k = min(n_directions, n_genes - 1, n - 1)
    scaled = x @ sp.diags(1 / sd)
    fitted = coefficients / sd

    def forward(v: Array) -> Array:
        return np.asarray(scaled @ v - design @ (fitted @ v))

    def backward(v: Array) -> Array:
        return np.asarray(scaled.T @ v - fitted.T @ (design.T @ v))

    operator = LinearOperator(
        (n, n_genes), matvec=forward, rmatvec=backward, matmat=forward, dtype=np.float64
    )
    start = np.ones(min(n, n_genes)) / np.sqrt(min(n, n_genes))  # fixed, so that a fit repeats bit for bit
    _, singular, right = svds(operator, k=k, v0=start)
    order = np.argsort(singular)[::-1]
    values, directions = singular[order] ** 2 / freedom, right[order].T
    rest = max((float((variance / sd**2).sum()) - float(values.sum())) / max(n_genes - k, 1), 1e-3)
    return CellVariation(means, batch_effects, sd, directions, np.maximum(values, rest), rest)
