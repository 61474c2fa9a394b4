"""Further point metrics of predicted pseudobulks (C, G), as pure functions: one value per condition, (C,).

No single one is enough: correlations are blind to the size of a shift, weighted errors to most genes, ranks to any error
that leaves the order alone. Where a metric is undefined its value is nan, unless it says otherwise. Source of all
formulas: evaluation.md section 2, which names the papers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, ttest_ind_from_stats

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TOP = 1000
PSEUDO = 0.1  # added before a logarithm, as PerturBench does
FALSE_DISCOVERY = 0.05
FEWEST_SIGNIFICANT = 10


def top_expressed(control: ArrayLike, count: int = TOP) -> NDArray[np.int64]:
    """The ``count`` genes of highest control mean (G,), ascending; ties go to the first (Ahlmann-Eltze et al. 2025)."""
    return np.sort(np.argsort(-np.asarray(control, float), kind="stable")[:count])


def delta_cosine(predicted: ArrayLike, truth: ArrayLike, reference: ArrayLike) -> tuple[Array, Mask]:
    """Cosine of the shifts from a reference (G,): ``<Xhat - O, X - O> / (|Xhat - O| |X - O|)``.

    Returns (values, undefined): a shift of length zero, up to rounding, has no direction; 0 stands for it. With O the mean
    of the training perturbations this is Systema's "perturbed" cosine (Vinas Torne et al. 2025).
    """
    origin = np.asarray(reference, float)
    return _cosine(*(_shift(np.asarray(one, float), origin) for one in (predicted, truth)))


def delta_slope(predicted: ArrayLike, truth: ArrayLike, control: ArrayLike) -> Array:
    """Least-squares slope through the origin of measured on predicted shifts, ``<dhat, d> / <dhat, dhat>``.

    1 is right, below 1 predicts shifts that are too large; nan for a predicted shift of zero. It stands beside
    correlations, which cannot see it. Sampling noise of the measured shift leaves it unbiased.
    """
    origin = np.asarray(control, float)
    dhat, d = (_shift(np.asarray(one, float), origin) for one in (predicted, truth))
    square = (dhat**2).sum(axis=-1)
    return np.divide((dhat * d).sum(axis=-1), square, out=np.full(square.shape, np.nan), where=square > 0)


def r2_mean(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """Coefficient of determination over genes, ``1 - |X - Xhat|^2 / |X - mean_g X|^2``; nan for constant truth.

    Means of genes differ far more than perturbations move them, so that no change is near 1 already: print it beside.
    """
    x, xhat = np.asarray(truth, float), np.asarray(predicted, float)
    total = ((x - x.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    error = ((x - xhat) ** 2).sum(axis=-1)
    return 1 - np.divide(error, total, out=np.full(total.shape, np.nan), where=total > 0)


def deviation_weights(mean: ArrayLike, variance: ArrayLike, n_cells: ArrayLike) -> Array:
    """Weights (C, G) of the genes in which a condition stands out, for ``weighted_mse`` and ``weighted_r2``.

    ``((|t| - min) / (max - min))^2`` over genes, t Welch's statistic of a condition's cells against those of all other
    conditions given, from means and variances (C, G) and counts (C,). They look at the truth, so they must not reach
    training or selection. nan for one condition, which has no others. Source: Miller et al. 2025.
    """
    x, s2, n = np.asarray(mean, float), np.asarray(variance, float), np.asarray(n_cells, float)[:, None]
    if len(x) < 2:
        return np.full(x.shape, np.nan)
    others = n.sum() - n
    rest = ((n * x).sum(axis=0) - n * x) / others
    # variance of the pooled others: within plus between conditions
    square = (n - 1) * s2 + n * x**2
    spread = np.maximum(square.sum(axis=0) - square - others * rest**2, 0.0) / np.maximum(others - 1, 1)
    error = np.sqrt(s2 / n + spread / others)
    size = np.abs(np.divide(x - rest, error, out=np.zeros_like(x), where=error > 0))
    low = size.min(axis=1, keepdims=True)
    reach = size.max(axis=1, keepdims=True) - low
    return np.divide(size - low, reach, out=np.zeros_like(size), where=reach > 0) ** 2


def weighted_mse(predicted: ArrayLike, truth: ArrayLike, weights: ArrayLike) -> Array:
    """``sum_g w (Xhat - X)^2 / sum_g w`` for weights (C, G) >= 0; nan without weight (WMSE, Miller et al. 2025)."""
    w = np.asarray(weights, float)
    error = (w * (np.asarray(predicted, float) - np.asarray(truth, float)) ** 2).sum(axis=-1)
    total = w.sum(axis=-1)
    return np.divide(error, total, out=np.full(total.shape, np.nan), where=total > 0)


def weighted_r2(predicted: ArrayLike, truth: ArrayLike, reference: ArrayLike, weights: ArrayLike) -> Array:
    """Weighted R2 of shifts D from a reference (G,): ``1 - sum w (D - Dhat)^2 / sum w (D - Dbar)^2``.

    The reference is the mean of all perturbations, Dbar the weighted mean of D over genes, as in
    ``r2_score(D, Dhat, sample_weight=w)``; nan where nothing varies.
    """
    origin, w = np.asarray(reference, float), np.asarray(weights, float)
    d, dhat = np.asarray(truth, float) - origin, np.asarray(predicted, float) - origin
    total = w.sum(axis=-1, keepdims=True)
    centre = np.divide((w * d).sum(axis=-1, keepdims=True), total, out=np.zeros_like(total), where=total > 0)
    varies = (w * (d - centre) ** 2).sum(axis=-1)
    error = (w * (d - dhat) ** 2).sum(axis=-1)
    return 1 - np.divide(error, varies, out=np.full(varies.shape, np.nan), where=varies > 0)


def log_fold(mean: ArrayLike, control: ArrayLike) -> Array:
    """``log2(mean + 0.1) - log2(control + 0.1)`` of means on the scored scale; predictions below 0 count as 0."""
    x, x0 = (np.maximum(np.asarray(one, float), 0.0) for one in (mean, control))
    return np.asarray(np.log2(x + PSEUDO) - np.log2(x0 + PSEUDO))


def log_fold_cosine(predicted: ArrayLike, truth: ArrayLike, control: ArrayLike) -> Array:
    """Cosine of predicted and measured ``log_fold`` (PerturBench, Wu et al. 2024); 0 where one of them is zero."""
    return _cosine(log_fold(predicted, control), log_fold(truth, control))[0]


def discrimination(
    queries: ArrayLike,
    candidates: ArrayLike,
    own: ArrayLike,
    distance: Literal["cosine", "euclidean"] = "cosine",
) -> Array:
    """How well queries (C, G) are told apart: the share of other candidates (M, G) that are farther than the own one.

    ``1 - k / (M - 1)`` with ``k = #{d_q < d_own} + (#{d_q = d_own} - 1) / 2``: 1 is best, 0.5 chance, ties count half.
    own (C,) is the row of each query's own candidate. With shifts and the cosine distance this is PDS (cell-eval2), a
    zero query or own shift gets 0.5; with profiles and the Euclidean one it is centroid accuracy (Systema). Predictions
    as queries rank truths per prediction; PerturBench has it the other way round. nan with fewer than two candidates.
    """
    q, x = np.asarray(queries, float), np.asarray(candidates, float)
    mine = np.asarray(own, np.int64)
    if len(x) < 2:
        return np.full(len(q), np.nan)
    if distance == "euclidean":
        far = np.stack([np.sqrt(((x - one) ** 2).sum(axis=1)) for one in q])
    else:
        lengths = [np.sqrt((one**2).sum(axis=1)) for one in (q, x)]
        units = [
            one / np.where(size > 0, size, 1.0)[:, None] for one, size in zip((q, x), lengths, strict=True)
        ]
        far = 1 - units[0] @ units[1].T
    at = far[np.arange(len(q)), mine][:, None]
    same = np.isclose(far, at, rtol=1e-12, atol=1e-12)
    closer = ((far < at) & ~same).sum(axis=1)
    value = 1 - (closer + 0.5 * (same.sum(axis=1) - 1)) / (len(x) - 1)
    if distance == "cosine":
        value = np.where((lengths[0] > 0) & (lengths[1][mine] > 0), value, 0.5)
    return np.asarray(value)


def significant(
    mean: ArrayLike, variance: ArrayLike, n_cells: ArrayLike, control: tuple[ArrayLike, ArrayLike, int]
) -> Mask:
    """Genes (C, G) whose means differ from control by Welch's test at 5 % false discovery (Benjamini-Hochberg) per condition.

    mean, variance (C, G), n_cells (C,); control: mean, variance (G,) and number of cells. How many are found depends on
    the number of cells; a condition or control of one cell has none.
    """
    x, s2, n = np.asarray(mean, float), np.asarray(variance, float), np.asarray(n_cells, float)[:, None]
    x0, s20, n0 = np.asarray(control[0], float), np.asarray(control[1], float), float(control[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = ttest_ind_from_stats(x, np.sqrt(s2), n, x0, np.sqrt(s20), n0, equal_var=False)
    p = np.where((n < 2) | (n0 < 2) | np.isnan(found.pvalue), 1.0, found.pvalue)
    return np.asarray(false_discovery_control(p, axis=1) <= FALSE_DISCOVERY)


def top_overlap(predicted_shift: ArrayLike, significant: ArrayLike) -> Array:
    """DES: of the k significant genes, the share among the k largest predicted shifts; nan where k is 0.

    Both (C, G), k is that of each condition; |shift| orders, ties go to the first gene. Depends on the number of cells
    through k: compare at equal n only (after cell-eval).
    """
    guess, chosen = np.abs(np.asarray(predicted_shift, float)), np.asarray(significant, bool)
    values = np.full(len(guess), np.nan)
    for row, genes in enumerate(chosen):
        count = int(genes.sum())
        if count:
            values[row] = genes[np.argsort(-guess[row], kind="stable")[:count]].mean()
    return values


def log_fold_error(
    predicted: ArrayLike, truth: ArrayLike, control: ArrayLike, significant: ArrayLike
) -> Array:
    """LFC-NMAE: ``sum |lfchat - lfc| / sum |lfc|`` over significant genes (C, G); nan for fewer than 10 (cell-eval2)."""
    guess, real, chosen = (
        log_fold(predicted, control),
        log_fold(truth, control),
        np.asarray(significant, bool),
    )
    total = (np.abs(real) * chosen).sum(axis=1)
    error = (np.abs(guess - real) * chosen).sum(axis=1)
    enough = (chosen.sum(axis=1) >= FEWEST_SIGNIFICANT) & (total > 0)
    return np.divide(error, total, out=np.full(total.shape, np.nan), where=enough)


def scaled_score(score: float, baseline: float, replicate: float) -> float:
    """``(score - baseline) / (replicate - baseline)``: 0 at the baseline, 1 at the measured replicate; never clipped."""
    return (score - baseline) / (replicate - baseline) if replicate != baseline else float("nan")


def dynamic_range(positive: float, negative: float, perfect: float) -> float:
    """``(u_positive - u_negative) / (u_perfect - u_negative)``: how much of its range a metric uses; below 0.2 no headline.

    positive: a replicate's score, negative: that of the mean of training or of control.
    """
    return scaled_score(positive, negative, perfect)


def _shift(profile: Array, origin: Array) -> Array:
    """Profile minus origin; zero where all of it is the rounding of the subtraction."""
    shift = profile - origin
    rounding = 1e-10 * (np.sqrt((profile**2).sum(axis=-1)) + np.sqrt((origin**2).sum(axis=-1)))
    return np.where((np.sqrt((shift**2).sum(axis=-1)) <= rounding)[..., None], 0.0, shift)


def _cosine(first: Array, second: Array) -> tuple[Array, Mask]:
    sizes = [np.sqrt((one**2).sum(axis=-1)) for one in (first, second)]
    undefined = (sizes[0] == 0) | (sizes[1] == 0)
    product = (first * second).sum(axis=-1) / np.where(undefined, 1.0, sizes[0] * sizes[1])
    return np.where(undefined, 0.0, np.clip(product, -1.0, 1.0)), undefined
