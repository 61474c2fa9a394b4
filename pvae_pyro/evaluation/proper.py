"""Proper scores of whole predictive distributions: energy score and log score, as pure functions.

A score is proper when nobody does better, on average, by saying anything but what they believe: too narrow, too
wide and off centre all lose. The interval score is left out, since the CRPS (`metrics`) is its integral over
all levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma

Array = NDArray[np.float64]

LOG_SCORE_DRAWS = 4  # fewer leave the mean of 1 / sd^2 without an expectation


def energy_score(draws: ArrayLike, measured: ArrayLike, scale: ArrayLike) -> Array:
    """Energy score of joint draws (S, C, G) against measured pseudobulks (C, G), one per condition, (C,).

    ``mean_s |X_s - y| - sum_{s,t} |X_s - X_t| / (2 S (S - 1))`` with ``|v| = sqrt(sum_g (v_g / scale_g)^2)``:
    the CRPS carried over to profiles, exact over all pairs of draws and unbiased in S. In units of the scale,
    it grows with the square root of the number of genes; smaller is better. scale (G,): a typical sd per gene,
    taken from training; genes where it is 0 are left out. nan where no gene is left. Raises ValueError for
    fewer than two draws, shapes that disagree and a scale that is negative or not finite. Source: Gneiting &
    Raftery 2007, equation 22; evaluation.md 4.2.
    """
    x, y, unit = np.asarray(draws), np.asarray(measured, float), np.asarray(scale, float)
    if x.ndim != 3 or x.shape[1:] != y.shape or x.shape[0] < 2:
        raise ValueError(
            f"the energy score needs two draws or more of the measured shape {y.shape}, found {x.shape}"
        )
    if unit.shape != y.shape[1:] or not np.isfinite(unit).all() or (unit < 0).any():
        raise ValueError(f"a scale of finite values >= 0 per gene is needed, of shape {y.shape[1:]}")
    kept = np.flatnonzero(unit > 0)
    score = np.full(len(y), np.nan)
    if len(kept):
        for row in range(len(y)):
            error = (x[:, row, kept].astype(np.float64) - y[row, kept]) / unit[kept]
            score[row] = np.sqrt((error**2).sum(axis=1)).mean() - 0.5 * _mean_distance(error)
    return score


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
