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


def cv_plus(
    scores: ArrayLike, fold: ArrayLike, mean: ArrayLike, sd: ArrayLike, level: float
) -> tuple[Array, Array]:
    """CV+ ends (C, G) of new pairs, low and high, from K cross-validated fits.

    scores (P,), such as ``profile_scores`` of each calibration pair from the fit that left it out; fold (P,), which of the K
    fits that was; mean, sd (K, C, G): what each fit says of the new pairs. Per gene, low is the ``floor((1 - level)(P + 1))``-th
    smallest of ``mean_k(i) - S_i sd_k(i)`` over i, high the ``ceil(level (P + 1))``-th smallest of the sums; infinite where
    there is no such place. With profile scores a new pair has its share of genes inside both bounds of at least
    ``2 level - 1`` and usually ``level``. Raises ValueError for a fold without a prediction.
    """
    s, which = np.asarray(scores, float), np.asarray(fold, np.int64)
    centre, width = np.asarray(mean, float), np.asarray(sd, float)
    if s.shape != which.shape or centre.shape != width.shape or centre.ndim != 3:
        raise ValueError("CV+ needs one fold per score, and predictions of shape (folds, conditions, genes)")
    if len(which) and not (which.min() >= 0 and which.max() < len(centre)):
        raise ValueError(f"CV+ has predictions of {len(centre)} folds, but the scores name others")
    count = len(s)
    below = int(np.floor((1 - level) * (count + 1) + 1e-9))
    above = int(np.ceil(level * (count + 1) - 1e-9))
    low, high = np.full(centre.shape[1:], -np.inf), np.full(centre.shape[1:], np.inf)
    for row in range(centre.shape[1]):
        reach = s[:, None] * width[which, row]
        if below >= 1:
            low[row] = np.partition(centre[which, row] - reach, below - 1, axis=0)[below - 1]
        if above <= count:
            high[row] = np.partition(centre[which, row] + reach, above - 1, axis=0)[above - 1]
    return low, high
