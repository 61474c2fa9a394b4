"""Proper scores of whole predictive distributions, as pure functions: energy, variogram, log and interval score.

A score is proper when nobody does better, on average, by saying anything but what they believe: too narrow, too
wide and off centre all lose. The CRPS is in `metrics`; it is the interval score integrated over all levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma

Array = NDArray[np.float64]

LOG_SCORE_DRAWS = 4  # fewer leave the mean of 1 / sd^2 without an expectation
VARIOGRAM_GENES = 200  # pairs of genes grow with the square
_VARIOGRAM_BLOCK = 4_000_000  # differences of two genes held at a time: 32 MB


def energy_score(draws: ArrayLike, measured: ArrayLike, scale: ArrayLike) -> Array:
    """Energy score of joint draws (S, C, G) against measured pseudobulks (C, G), one per condition, (C,).

    ``mean_s |X_s - y| - sum_{s,t} |X_s - X_t| / (2 S (S - 1))`` with ``|v| = sqrt(sum_g (v_g / scale_g)^2)``:
    the CRPS carried over to profiles, exact over all pairs of draws and unbiased in S. In units of the scale,
    it grows with the square root of the number of genes; smaller is better. scale (G,): a typical sd per gene,
    taken from training; genes where it is 0 are left out. nan where no gene is left. Raises ValueError for
    fewer than two draws, shapes that disagree and a scale that is negative or not finite. Source: Gneiting &
    Raftery 2007, equation 22; evaluation.md 4.2.
    """
    x, y, unit = _joint(draws, measured, scale, "energy")
    kept = np.flatnonzero(unit > 0)
    score = np.full(len(y), np.nan)
    if len(kept):
        for row in range(len(y)):
            error = (x[:, row, kept].astype(np.float64) - y[row, kept]) / unit[kept]
            score[row] = np.sqrt((error**2).sum(axis=1)).mean() - 0.5 * _mean_distance(error)
    return score


def variogram_score(draws: ArrayLike, measured: ArrayLike, scale: ArrayLike, power: float = 0.5) -> Array:
    """Variogram score of joint draws (S, C, G) against measured pseudobulks (C, G), one per condition, (C,).

    ``mean_{g<h} (|y_g - y_h|^p - E |X_g - X_h|^p)^2`` over pairs of genes, on values divided by scale (G,); the
    expectation is the mean over draws, and its sampling variance ``var_s / S`` is taken off, which makes the score
    unbiased in S (so a perfect forecast of few draws can score below zero). It sees what the energy score hardly
    does, whether genes move together; it is blind to a shift common to all genes and only proper, not strictly.
    Without a unit, smaller is better. Genes where scale is 0 are left out; nan where fewer than two are left. Memory
    and time grow with S G^2: give it the genes of ``variogram_genes``. Raises ValueError for fewer than two draws,
    shapes that disagree, a bad scale and a power that is not positive. Source: Scheuerer & Hamill 2015, with the mean
    in place of the sum; evaluation.md 4.2.
    """
    x, y, unit = _joint(draws, measured, scale, "variogram")
    if not power > 0:
        raise ValueError(f"the variogram score needs a power above 0, not {power}")
    kept = np.flatnonzero(unit > 0)
    first, second = np.triu_indices(len(kept), 1)
    score = np.full(len(y), np.nan)
    if not len(first):
        return score
    step = max(1, _VARIOGRAM_BLOCK // len(x))
    for row in range(len(y)):
        drawn = x[:, row, kept].astype(np.float64) / unit[kept]
        seen = y[row, kept] / unit[kept]
        total = 0.0
        for start in range(0, len(first), step):
            a, b = first[start : start + step], second[start : start + step]
            distance = np.abs(drawn[:, a] - drawn[:, b]) ** power
            gap = np.abs(seen[a] - seen[b]) ** power - distance.mean(axis=0)
            total += float((gap**2 - distance.var(axis=0, ddof=1) / len(x)).sum())
        score[row] = total / len(first)
    return score


def variogram_genes(control: ArrayLike, scale: ArrayLike, count: int = VARIOGRAM_GENES) -> NDArray[np.int64]:
    """The genes, ascending, that the variogram score reads: the ``count`` highest by control mean (G,).

    Genes whose scale (G,) is 0 come last, ties in the order of the genes. Chosen without the outcome, so that no
    method can gain by it.
    """
    rank = np.where(np.asarray(scale, float) > 0, np.asarray(control, float), -np.inf)
    return np.sort(np.argsort(-rank, kind="stable")[:count])


def interval_score(low: ArrayLike, high: ArrayLike, truth: ArrayLike, level: float) -> Array:
    """Interval score (Winkler score) of central intervals [low, high] of a level at truth, elementwise.

    ``(high - low) + 2/a (low - y)_+ + 2/a (y - high)_+`` with ``a = 1 - level``: the width, plus a fine for what is
    missed; smaller is better, in the unit of the data. Proper for the quantiles a/2 and 1 - a/2. Raises ValueError for
    a level outside (0, 1) and for a low above its high. Source: Gneiting & Raftery 2007, equation 43.
    """
    lower, upper, y = np.asarray(low, float), np.asarray(high, float), np.asarray(truth, float)
    if not 0 < level < 1:
        raise ValueError(f"an interval score needs a level between 0 and 1, not {level}")
    if (lower > upper).any():
        raise ValueError("an interval score needs intervals whose low end is not above the high one")
    missed = np.maximum(lower - y, 0.0) + np.maximum(y - upper, 0.0)
    return np.asarray(upper - lower + 2 / (1 - level) * missed)


def log_score_normal(mean: ArrayLike, sd: ArrayLike, truth: ArrayLike) -> Array:
    """Log density of Normal(mean, sd) at truth, elementwise; larger is better, nan where sd is 0.

    ``- log(2 pi) / 2 - log sd - (truth - mean)^2 / (2 sd^2)``, in nats when lengths are in the unit of the
    data (another unit adds one constant to every method).
    """
    width, error = np.asarray(sd, float), np.asarray(truth, float) - np.asarray(mean, float)
    safe = np.where(width > 0, width, 1.0)
    score = -0.5 * np.log(2 * np.pi) - np.log(safe) - 0.5 * (error / safe) ** 2
    return np.asarray(np.where(width > 0, score, np.nan))


def log_score_samples(draws: ArrayLike, truth: ArrayLike) -> Array:
    """Log density at truth (...) of the Normal that draws (S, ...) come from, unbiased in S; nan where sd is 0.

    With mean m and unbiased variance v of S draws and n = S - 1,
    ``- log(2 pi) / 2 - [log v - digamma(n/2) + log(n/2)] / 2 - [(n - 2)/n (truth - m)^2 / v - 1/S] / 2``,
    whose expectation over Normal draws is the density of the Normal itself (Siegert, Ferro, Stephenson &
    Leutbecher 2019, the ensemble-adjusted ignorance score); without the correction few draws would lose.

    Why a Normal: a pseudobulk averages many cells, so a predicted one is nearly Normal gene by gene, and the
    score stays proper for draws that are not, judging their mean and variance alone (Dawid & Sebastiani 1999).
    A kernel density of a few hundred draws is empty just where a score decides, in the tails; a Student's t of
    fixed degrees of freedom would forgive a fit that is too sure, which the log score is there to notice. One
    gene far outside can decide it, so CRPS and energy score, which grow linearly, belong beside it. Raises
    ValueError for fewer than four draws and shapes that disagree.
    """
    x, y = np.asarray(draws), np.asarray(truth, float)
    count = len(x)
    if x.shape[1:] != y.shape or count < LOG_SCORE_DRAWS:
        raise ValueError(
            f"the log score needs {LOG_SCORE_DRAWS} draws or more of the truth's shape {y.shape}, found {x.shape}"
        )
    n = count - 1
    # from the truth on, so that draws far from zero but close together keep their digits
    error = x.astype(np.float64) - y
    variance = error.var(axis=0, ddof=1)
    # draws that are all the same leave rounding behind, which is no width
    known = (variance > 0) & (x != x[:1]).any(axis=0)
    safe = np.where(known, variance, 1.0)
    spread = np.log(safe) - digamma(n / 2) + np.log(n / 2)
    distance = (n - 2) / n * error.mean(axis=0) ** 2 / safe - 1 / count
    return np.asarray(np.where(known, -0.5 * (np.log(2 * np.pi) + spread + distance), np.nan))


def _joint(
    draws: ArrayLike, measured: ArrayLike, scale: ArrayLike, what: str
) -> tuple[NDArray[np.floating], Array, Array]:
    """Draws (S, C, G), measured (C, G) and scale (G,) as arrays, once they fit together."""
    x, y, unit = np.asarray(draws), np.asarray(measured, float), np.asarray(scale, float)
    if x.ndim != 3 or x.shape[1:] != y.shape or x.shape[0] < 2:
        raise ValueError(
            f"the {what} score needs two draws or more of the measured shape {y.shape}, found {x.shape}"
        )
    if unit.shape != y.shape[1:] or not np.isfinite(unit).all() or (unit < 0).any():
        raise ValueError(f"a scale of finite values >= 0 per gene is needed, of shape {y.shape[1:]}")
    return x, y, unit


def _mean_distance(points: Array) -> float:
    """Mean Euclidean distance between two different rows of points (S, G), over all pairs."""
    count = len(points)
    centred = points - points.mean(axis=0)
    # by inner products, which is one matrix product; centred, so that little is lost to cancellation
    products = centred @ centred.T
    squares = np.diag(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return float(np.sqrt(distances).sum() / (count * (count - 1)))
