"""Scores of one prediction against measured pseudobulks: pure functions, one value per condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import norm

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEVELS = (0.50, 0.80, 0.90, 0.95)
_BLOCK = 4_000_000  # draws sorted at a time: 32 MB in float64


def l2(predicted: ArrayLike, truth: ArrayLike) -> Array:
    """Euclidean distance ``sqrt(sum_g (Xhat_g - X_g)^2)`` of (..., G) profiles, shape (...)."""
    return np.asarray(np.sqrt(((np.asarray(predicted, float) - np.asarray(truth, float)) ** 2).sum(axis=-1)))


def delta_pearson(predicted: ArrayLike, truth: ArrayLike, control: ArrayLike) -> tuple[Array, Mask]:
    """Correlation over genes of the shifts, ``corr_g(Xhat - X0, X - X0)``, for (C, G) profiles.

    Returns (values (C,), undefined (C,)): where either shift is constant over genes up to rounding there is
    no correlation; the value is then 0 and marked undefined, so that it can be counted.
    """
    x0 = np.asarray(control, float)
    shifts, flat = [], []
    for profile in (np.asarray(predicted, float), np.asarray(truth, float)):
        shift = profile - x0
        shift = shift - shift.mean(axis=-1, keepdims=True)
        size = np.sqrt((shift**2).sum(axis=-1))
        # a shift this small is the rounding of the subtraction, whose direction means nothing
        rounding = 1e-10 * (np.sqrt((profile**2).sum(axis=-1)) + np.sqrt((x0**2).sum(axis=-1)))
        flat.append(size <= rounding)
        shifts.append(shift / np.where(size > 0, size, 1.0)[..., None])
    undefined = flat[0] | flat[1]
    values = np.clip((shifts[0] * shifts[1]).sum(axis=-1), -1.0, 1.0)
    return np.where(undefined, 0.0, values), undefined


def mse_terms(
    predicted: ArrayLike,
    truth: ArrayLike,
    control: ArrayLike,
    truth_noise: ArrayLike,
    control_noise: float,
    predicted_noise: ArrayLike = 0.0,
) -> tuple[Array, Array]:
    """Noise-corrected squared error and squared effect, the terms of the MSE ratio.

    ``N_p = (||Xhat - X||^2 - min(Chat, C) - C) / G`` and ``D_p = (||X - X0||^2 - C - C0) / G`` for (C, G)
    profiles. C = sum_g s2_g / n is the jackknife variance of the measured mean (``truth_noise`` (C,)), C0
    the same of the control, Chat that of a prediction made by averaging cells (0 otherwise; capped, or
    noise would be rewarded). Either term can be negative when an effect drowns in sampling noise. Source:
    evaluation.md section 2.
    """
    xhat, x = np.asarray(predicted, float), np.asarray(truth, float)
    noise = np.asarray(truth_noise, float)
    genes = x.shape[-1]
    excess = ((xhat - x) ** 2).sum(axis=-1) - np.minimum(np.asarray(predicted_noise, float), noise) - noise
    effect = ((x - np.asarray(control, float)) ** 2).sum(axis=-1) - noise - control_noise
    return excess / genes, effect / genes


def mse_ratio(excess: ArrayLike, effect: ArrayLike) -> float:
    """``sum_p N_p / sum_p D_p``: 0 is perfect, 1 as bad as no change; nan if no effect exceeds its noise."""
    total = float(np.sum(effect))
    return float(np.sum(excess)) / total if total > 0 else float("nan")


def crps_samples(draws: ArrayLike, truth: ArrayLike) -> Array:
    """Continuous ranked probability score of draws (S, ...) against truth (...), unbiased in S.

    ``mean_s |X_s - y| - sum_{s,t} |X_s - X_t| / (2 S (S - 1))``: the usual S^2 in the second term would
    punish few draws (Gneiting & Raftery 2007 with the S/(S-1) correction). Sorted, O(S log S), in blocks,
    in float64. Raises ValueError for fewer than two draws or shapes that disagree.
    """
    x, y = np.asarray(draws), np.asarray(truth, float)
    if x.shape[1:] != y.shape or x.shape[0] < 2:
        raise ValueError(f"CRPS needs two draws or more of the truth's shape {y.shape}, found {x.shape}")
    count = x.shape[0]
    flat, target = x.reshape(count, -1), y.reshape(-1)
    weights = (2.0 * np.arange(1, count + 1) - count - 1.0) / (count * (count - 1.0))
    score = np.empty(target.shape)
    step = max(1, _BLOCK // count)
    for start in range(0, len(target), step):
        block = slice(start, start + step)
        # subtracting the truth first keeps precision where draws are nearly equal
        error = np.sort(flat[:, block].astype(np.float64) - target[block], axis=0)
        score[block] = np.abs(error).mean(axis=0) - weights @ error
    return score.reshape(y.shape)


def crps_normal(mean: ArrayLike, sd: ArrayLike, truth: ArrayLike) -> Array:
    """CRPS of Normal(mean, sd) in closed form, elementwise.

    ``sd (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi))`` with z = (y - mean) / sd; ``|y - mean|`` where sd = 0.
    Source: Gneiting & Raftery 2007, equation 21.
    """
    scale = np.asarray(sd, float)
    error = np.asarray(truth, float) - np.asarray(mean, float)
    z = error / np.where(scale > 0, scale, 1.0)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    score = scale * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))
    return np.asarray(np.where(scale > 0, score, np.abs(error)))


def ends_draws(draws: ArrayLike, levels: Sequence[float] = LEVELS) -> tuple[Array, Array]:
    """Low and high ends (levels, ...) of the central intervals of draws (S, ...): quantiles, interpolated linearly."""
    tails = np.array([(1 - level) / 2 for level in levels])
    ends = np.quantile(np.asarray(draws).astype(np.float64), np.concatenate([tails, 1 - tails]), axis=0)
    return ends[: len(tails)], ends[len(tails) :]


def ends_normal(mean: ArrayLike, sd: ArrayLike, levels: Sequence[float] = LEVELS) -> tuple[Array, Array]:
    """Low and high ends (levels, ...) of the central intervals of Normal(mean, sd)."""
    centre, width = np.asarray(mean, float), np.asarray(sd, float)
    reach = np.stack([norm.ppf((1 + level) / 2) * width for level in levels])
    return centre - reach, centre + reach


def covered_draws(draws: ArrayLike, truth: ArrayLike, levels: Sequence[float] = LEVELS) -> Mask:
    """Whether truth (...) lies within the central intervals of draws (S, ...): (levels, ...), ends included.

    Ends are empirical quantiles with linear interpolation. Calibrated draws are then expected to cover
    about ``level (S - 1) / (S + 1)``, a little below the level: the deficit of few draws is not hidden.
    """
    low, high = ends_draws(draws, levels)
    y = np.asarray(truth, float)
    return np.asarray((low <= y) & (y <= high))


def covered_normal(
    mean: ArrayLike, sd: ArrayLike, truth: ArrayLike, levels: Sequence[float] = LEVELS
) -> Mask:
    """Whether truth (...) lies in the central intervals of Normal(mean, sd): (levels, ...), ends included."""
    error = np.abs(np.asarray(truth, float) - np.asarray(mean, float))
    width = np.asarray(sd, float)
    return np.stack([error <= norm.ppf((1 + level) / 2) * width for level in levels])


@dataclass(frozen=True, eq=False)
class Floor:
    """What measurement noise alone does to the scores of C conditions; nan where a condition has one cell.

    ``perfect_*``: a prediction equal to the true mean, scored against the measured one. ``replicate_*``: a
    second measurement of as many cells, scored against the first. Both from two disjoint halves of the
    cells.
    """

    perfect_l2: Array
    replicate_l2: Array
    perfect_delta_pearson: Array
    replicate_delta_pearson: Array


def half_replicate_floor(summary: ConditionSummary, control: ArrayLike) -> Floor:
    """Noise floor from the means of two disjoint halves of each condition's cells, (C,) each.

    The halves differ with variance ``s2 (1/nA + 1/nB)``, a replicate of all n cells with ``2 s2 / n``, a
    measured mean and the truth with ``s2 / n``: the halves' L2 is scaled by the square roots of those
    ratios. With r the halves' delta Pearson, a replicate reaches ``2 r / (1 + r)`` (Spearman-Brown) and a
    perfect prediction the square root of that; r <= 0 is left as it is.
    """
    first, second = summary.halves
    n = np.asarray(summary.n_cells, dtype=float)
    usable = n >= 2
    low = np.where(usable, n // 2, 1.0)
    high = np.where(usable, n - n // 2, 1.0)
    per_cell = np.where(usable, 1 / (n * (1 / low + 1 / high)), np.nan)
    distance = l2(first, second)
    r = np.full(len(n), np.nan)
    r[usable] = delta_pearson(first[usable], second[usable], control)[0]
    whole = np.where(r > 0, 2 * r / (1 + np.where(r > 0, r, 0.0)), r)
    return Floor(
        perfect_l2=distance * np.sqrt(per_cell),
        replicate_l2=distance * np.sqrt(2 * per_cell),
        perfect_delta_pearson=np.where(whole > 0, np.sqrt(np.where(whole > 0, whole, 0.0)), whole),
        replicate_delta_pearson=whole,
    )
