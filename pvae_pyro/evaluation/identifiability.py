"""Have latents been identified? Matching, blocks, leakage and graphs against the truth, with the floor that chance reaches.

Everything takes latents of held-out cells in one random order: maps are chosen on the first half and scored on the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import linear_sum_assignment
from scipy.stats import ortho_group, rankdata

Floats = NDArray[np.float64]
Kind = Literal["pearson", "spearman"]


@dataclass(frozen=True, eq=False)
class Matching:
    """One estimated latent for each true one: `estimated` (true,) its index, -1 where there are too few; `sign` (true,) of
    their correlation; `correlation` (true,) its size in cells that did not choose it, 0 without a partner.
    """

    estimated: NDArray[np.int64]
    sign: Floats
    correlation: Floats

    @property
    def mcc(self) -> float:
        """Mean correlation coefficient: the mean of `correlation`."""
        return float(self.correlation.mean())


def match(estimated: ArrayLike, true: ArrayLike, kind: Kind = "pearson") -> Matching:
    """Hungarian 1:1 matching of latents (cells, estimated) to (cells, true) by |correlation|.

    Raises ValueError for latents of different numbers of cells, of fewer than 8, and for values that are not finite.
    """
    found, truth = _checked(estimated, true)
    half = len(found) // 2
    first, second = (
        _correlations(found[rows], truth[rows], kind) for rows in (slice(0, half), slice(half, None))
    )
    which, of = linear_sum_assignment(-np.abs(first))
    out = np.full(truth.shape[1], -1)
    out[of] = which
    value = np.where(out >= 0, second[out, np.arange(len(out))], 0.0)
    sign = np.where(out >= 0, np.sign(first[out, np.arange(len(out))]), 0.0)
    return Matching(out, sign, np.abs(value))


def mcc(estimated: ArrayLike, true: ArrayLike, kind: Kind = "pearson") -> float:
    """Mean |correlation| after `match`: 1 for latents that are right up to order, sign and scale (paper section 3)."""
    return match(estimated, true, kind).mcc


def mcc_floor(true: ArrayLike, seed: int = 0, draws: int = 200, kind: Kind = "pearson") -> float:
    """Median MCC of random rotations of the true latents, decorrelated and scaled: what knowing their span alone gives.

    Decorrelated by the symmetric square root would keep each near itself, so the rotation comes after it.
    """
    truth, _ = _checked(true, true)
    centred = truth - truth.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    white = centred @ axes.T
    white = white / white.std(0)
    rng, size = np.random.default_rng(seed), truth.shape[1]
    if size == 1:
        return 1.0
    turns = [ortho_group.rvs(size, random_state=rng) for _ in range(draws)]
    return float(np.median([mcc(white @ turn, truth, kind) for turn in turns]))


def r2_linear(source: ArrayLike, target: ArrayLike) -> float:
    """Held-out R2 of linear regression of `target` (cells, m) on `source` (cells, n), mean over targets."""
    x, y = _checked(source, target)
    half = len(x) // 2
    design = np.column_stack([x, np.ones(len(x))])
    weights = np.linalg.lstsq(design[:half], y[:half], rcond=None)[0]
    return _r2(design[half:] @ weights, y[half:])


def r2_kernel(
    source: ArrayLike, target: ArrayLike, ridges: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
) -> float:
    """The same with Gaussian kernel ridge regression, width the median distance, ridge chosen inside the first half."""
    x, y = _checked(source, target)
    half, inner = len(x) // 2, len(x) // 3
    x = (x - x[:half].mean(0)) / np.maximum(x[:half].std(0), 1e-12)
    centre, scale = y[:half].mean(0), np.maximum(y[:half].std(0), 1e-12)
    y = (y - centre) / scale
    squared = ((x[:, None, :] - x[None, :half, :]) ** 2).sum(-1)
    kernel = np.exp(-squared / np.maximum(np.median(squared[:half]), 1e-12))

    def fitted(rows: int, ridge: float, to: slice) -> Floats:
        factor = cho_factor(kernel[:rows, :rows] + ridge * np.eye(rows))
        return np.asarray(kernel[to, :rows] @ cho_solve(factor, y[:rows]))

    best = max(ridges, key=lambda r: _r2(fitted(inner, r, slice(inner, half)), y[inner:half]))
    return _r2(fitted(half, best, slice(half, None)), y[half:])


def label_leakage(latents: ArrayLike, condition: ArrayLike, seed: int = 0, permutations: int = 50) -> float:
    """Share of the latents' variance (cells, n) that lies between conditions (cells,), less what permuted labels give."""
    z, code = np.asarray(latents, dtype=float), np.asarray(condition)
    rng = np.random.default_rng(seed)
    chance = np.mean([_between(z, rng.permutation(code)) for _ in range(permutations)])
    return _between(z, code) - float(chance)


def align_graph(graph: ArrayLike, estimated: ArrayLike, true: ArrayLike) -> Floats:
    """Edge weights in the order, sign and unit variance of the true latents: W' = P D W D^-1 P^T of evaluation 4.6.

    graph (..., n, n) with graph[..., i, j] the weight of j in the equation of i; latents (cells, n) of the same cells. Matched
    by correlation, never by the graph itself.
    """
    pairs = match(estimated, true)
    if (pairs.estimated < 0).any():
        raise ValueError("graphs are compared between as many latents as there are true ones")
    order = pairs.estimated
    scale = pairs.sign / np.asarray(estimated, dtype=float).std(axis=0)[order]
    chosen = np.asarray(graph, dtype=float)[..., order, :][..., order]
    return np.asarray(scale[:, None] * chosen / scale[None, :])


def shd(one: ArrayLike, other: ArrayLike, threshold: float = 0.0) -> int:
    """Structural Hamming distance of two weight matrices (n, n): edges |w| > threshold, a reversed edge counted once."""
    a, b = (np.abs(np.asarray(g, dtype=float)) > threshold for g in (one, other))
    wrong = a != b
    return int((wrong | wrong.T)[np.triu_indices(len(wrong), 1)].sum())


def _between(z: Floats, code: NDArray[np.generic]) -> float:
    _, code = np.unique(code, return_inverse=True)
    count = np.bincount(code)
    means = np.stack([np.bincount(code, weights=column) / count for column in z.T], axis=1)
    return float((((means - z.mean(0)) ** 2 * count[:, None]).sum(0) / (len(z) * z.var(0))).mean())


def _r2(predicted: Floats, true: Floats) -> float:
    error = ((true - predicted) ** 2).mean(0)
    return float((1 - error / np.maximum(true.var(0), 1e-12)).mean())


def _correlations(a: Floats, b: Floats, kind: Kind) -> Floats:
    if kind == "spearman":
        a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0))[:, None] * np.sqrt((b**2).sum(0))[None]
    return np.asarray(a.T @ b / np.maximum(norm, 1e-300))  # a latent that does not vary is like none


def _checked(one: ArrayLike, other: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 8:
        raise ValueError(
            f"latents must be (cells, latents) of the same 8 or more cells, not {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("latents hold values that are not finite")
    return a, b
