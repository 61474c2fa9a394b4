"""Post-hoc widths by group conformal prediction: pairs are exchangeable, genes of a pair are not independent of each other.

A conformal interval is a row of its own, never in place of the raw one: it can widen what is too narrow on average and says
nothing about which pair. Everything here is ``mean +- factor x sd`` with a factor learnt from measured pairs.
Source: Dunn, Wasserman & Ramdas 2018 (arXiv 1809.07441); Lee, Barber & Willett 2023 (arXiv 2306.06342); Barber, Candes,
Ramdas & Tibshirani 2021 (CV+); evaluation.md 4.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

Array = NDArray[np.float64]

PROFILE_SHARE = 0.9
GENE_SCORES = 50
_BLOCK = 10_000_000  # entries of the ends of candidate intervals held at a time


def relative_error(mean: ArrayLike, sd: ArrayLike, measured: ArrayLike) -> Array:
    """``|y - mean| / sd`` elementwise; 0 where both are 0, infinite where sd alone is."""
    error, width = np.abs(np.asarray(measured, float) - np.asarray(mean, float)), np.asarray(sd, float)
    sure = np.where(error > 0, np.inf, 0.0)
    return np.where(width > 0, error / np.where(width > 0, width, 1.0), sure)


def profile_scores(
    mean: ArrayLike, sd: ArrayLike, measured: ArrayLike, share: float = PROFILE_SHARE
) -> Array:
    """``S_p``: the smallest factor whose intervals hold ``share`` of the genes of a pair, (P,) from (P, G) each.

    An order statistic, not interpolated, so that ``ceil(share G)`` genes are inside.
    """
    ratio = np.sort(relative_error(mean, sd, measured), axis=-1)
    place = int(np.ceil(share * ratio.shape[-1] - 1e-9)) - 1
    return np.asarray(ratio[..., max(place, 0)])


def profile_factor(scores: ArrayLike, level: float) -> float:
    """Factor under which a new pair has ``share`` of its genes inside with probability >= level, from scores (P,).

    The k-th smallest score with ``k = ceil((P + 1) level)``; infinite where k > P, that is for fewer than
    ``level / (1 - level)`` pairs.
    """
    ordered = np.sort(np.asarray(scores, float))
    k = int(np.ceil((len(ordered) + 1) * level - 1e-9))
    return float(ordered[k - 1]) if k <= len(ordered) else float("inf")


def pooled_factor(ratios: ArrayLike, level: float) -> float:
    """Factor under which a random gene of a new pair is inside with probability >= level, from ratios (P, G).

    Pairs weigh 1 / (P + 1) each, spread evenly over their genes, and the missing 1 / (P + 1) lies at infinity (the pooled
    variant of Dunn et al.); infinite for fewer than ``level / (1 - level)`` pairs. nan ratios count nowhere.
    """
    values = np.asarray(ratios, float)
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    kept = values[counts > 0]
    weight = np.repeat(1 / ((len(kept) + 1) * counts[counts > 0]), counts[counts > 0])
    flat = kept[~np.isnan(kept)]
    order = np.argsort(flat, kind="stable")
    reached = np.cumsum(weight[order])
    place = int(np.searchsorted(reached, level - 1e-9))
    return float(flat[order][place]) if place < len(flat) else float("inf")


def coverage_range(pairs: int, level: float, mass: float = 0.9) -> tuple[float, float]:
    """Central range of the coverage that a split-conformal factor realises over draws of P calibration pairs.

    ``Beta(k, P + 1 - k)`` with ``k = ceil((P + 1) level)``: (1, 1) where k > P, since the factor is then infinite.
    """
    k = int(np.ceil((pairs + 1) * level - 1e-9))
    if k > pairs:
        return 1.0, 1.0
    low, high = beta.ppf([(1 - mass) / 2, (1 + mass) / 2], k, pairs + 1 - k)
    return float(low), float(high)


def left_out_factors(
    mean: ArrayLike, sd: ArrayLike, measured: ArrayLike, level: float, profile: bool = False
) -> Array:
    """For every pair the factor learnt from all the others, (P,), of predictions (P, G) that none of them took part in.

    ``pooled_factor``, or with profile ``profile_factor``. Honest for each pair on its own, since its measured values do
    not enter; for one fit and as many scored pairs it is split conformal with one pair left to score.
    """
    rows = np.arange(len(np.asarray(measured)))
    if profile:
        scores = profile_scores(mean, sd, measured)
        return np.array([profile_factor(scores[rows != row], level) for row in rows])
    ratios = relative_error(mean, sd, measured)
    return np.array([pooled_factor(ratios[rows != row], level) for row in rows])


def gene_scores(mean: ArrayLike, sd: ArrayLike, measured: ArrayLike, count: int = GENE_SCORES) -> Array:
    """``|y - mean| / sd`` of each pair's genes (P, G), thinned to ``count`` order statistics that stand for equal shares.

    The ``ceil(j G / count)``-th smallest for j = 1 to count, (P, count), never below the genes that they stand for; all of them
    where there are no more. Scores of ``cv_plus`` under which a random gene of a new pair is inside.
    """
    ratio = np.sort(relative_error(mean, sd, measured), axis=-1)
    genes = ratio.shape[-1]
    kept = min(count, genes)
    place = np.ceil(np.arange(1, kept + 1) * genes / kept - 1e-9).astype(int) - 1
    return np.asarray(ratio[..., place])


def cv_plus(
    scores: ArrayLike, fold: ArrayLike, mean: ArrayLike, sd: ArrayLike, level: float
) -> tuple[Array, Array]:
    """CV+ ends (C, G) of new pairs, low and high, from K cross-validated fits.

    scores (P,) or (P, M): of each calibration pair from the fit that left it out, such as ``profile_scores`` (one for a pair)
    or ``gene_scores`` (M, of weight 1 / M each). fold (P,): which of the K fits that was; mean, sd (K, C, G): what each
    fit says of the new pairs. Per gene, high is the ``ceil(level (P + 1) M)``-th smallest of ``mean_k(i) + S_im sd_k(i)`` over i
    and m, low as many-th largest of the differences; infinite where there is no such place. A new pair
    has its share of genes (profile scores), or a random one of its genes (gene scores), inside both bounds with probability of
    at least ``2 level - 1`` and usually ``level``. Raises ValueError for a fold without a prediction.
    """
    s, which = np.asarray(scores, float), np.asarray(fold, np.int64)
    centre, width = np.asarray(mean, float), np.asarray(sd, float)
    if s.ndim not in (1, 2) or which.shape != s.shape[:1] or centre.shape != width.shape or centre.ndim != 3:
        raise ValueError("CV+ needs one fold per score, and predictions of shape (folds, conditions, genes)")
    if len(which) and not (which.min() >= 0 and which.max() < len(centre)):
        raise ValueError(f"CV+ has predictions of {len(centre)} folds, but the scores name others")
    each = s.shape[1] if s.ndim == 2 else 1
    flat, which = s.reshape(-1), np.repeat(which, each)
    above = int(np.ceil(level * (len(s) + 1) * each - 1e-9))
    below = len(flat) + 1 - above
    never = np.isinf(flat)  # no multiple of sd was enough, nor is one of an sd of 0
    flat = np.where(never, 0.0, flat)[:, None]
    low, high = np.full(centre.shape[1:], -np.inf), np.full(centre.shape[1:], np.inf)
    step = max(1, _BLOCK // max(len(flat), 1))
    for row in range(centre.shape[1]):
        for start in range(0, centre.shape[2], step):
            part = slice(start, start + step)
            middle = centre[which, row, part]
            reach = np.where(never[:, None], np.inf, flat * width[which, row, part])
            if below >= 1:
                low[row, part] = np.partition(middle - reach, below - 1, axis=0)[below - 1]
            if above <= len(flat):
                high[row, part] = np.partition(middle + reach, above - 1, axis=0)[above - 1]
    return low, high
