"""Start of the penetrance: cells seen along the shift of their own condition, and shifts of those that respond."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .covariance import CellVariation
from .shrinkage import shrink

if TYPE_CHECKING:
    from .warm_start import Start

Array = NDArray[np.float64]


def along_shifts(
    variation: CellVariation, expression: sp.csr_matrix, condition: NDArray[np.int64], batch: NDArray[np.int64], control: int
) -> Array:
    """Where cells (cells,) stand along the shift of their condition, in sds of control cells from their mean; 0 for control.

    Each half of every condition's cells is seen along the shift of the other half, shrunk and whitened: a cell leans towards a
    mean that it is part of, and one that escaped would seem to respond a little.
    """
    x = expression.astype(np.float64)
    half, n = _halves(condition), len(variation.means)
    mean, count = [], []
    for part in (0, 1):
        rows = np.flatnonzero(half == part)
        of_condition = sp.csr_matrix((np.ones(len(rows)), (condition[rows], rows)), shape=(n, len(condition)))
        of_batch = np.zeros((n, len(variation.batch_effects)))
        np.add.at(of_batch, (condition[rows], batch[rows]), 1.0)
        count.append(of_batch.sum(axis=1))
        total = (of_condition @ x).toarray() - of_batch @ variation.batch_effects
        mean.append(total / np.maximum(count[part], 1)[:, None])
    others = np.flatnonzero(np.arange(n) != control)
    out = np.zeros(len(condition))
    for part, other in ((0, 1), (1, 0)):
        shifts = np.where(count[other][others, None] > 0, mean[other][others] - mean[other][control], 0.0)
        shrunk = shrink(variation.whiten(shifts), np.maximum(count[other][others], 1), np.ones(x.shape[1])).shifts
        to_score = np.zeros((x.shape[1], n))
        to_score[:, others] = variation.coordinates(shrunk)
        level = mean[part][control] @ to_score
        offset = variation.batch_effects @ to_score
        base = np.asarray(x[(half == part) & (condition == control)] @ to_score)
        sd = np.maximum(base.std(axis=0), 1e-12)
        for d in others:
            rows = np.flatnonzero((half == part) & (condition == d))
            out[rows] = (np.asarray(x[rows] @ to_score[:, d]) - level[d] - offset[batch[rows], d]) / sd[d]
    return out


def _halves(condition: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 or 1 for every cell, in turn within its condition."""
    order = np.argsort(condition, kind="stable")
    first = np.searchsorted(condition[order], condition[order])
    half = np.empty(len(condition), dtype=np.int64)
    half[order] = (np.arange(len(condition)) - first) % 2
    return half


def of_responding(start: Start, rate: Array) -> Start:
    """The start with shifts of responding cells: those of all cells over the share that responds, rate (conditions,)."""
    scores = start.scores / rate[:, None]
    grown = float(np.linalg.norm(scores) / np.linalg.norm(start.scores)) if scores.any() else 1.0
    return replace(start, scores=scores, score_sd=start.score_sd / rate[:, None], scale=start.scale * grown)
