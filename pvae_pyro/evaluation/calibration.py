"""Whether predictive distributions say the truth about themselves, overall and group by group, as pure functions.

Genes of one condition share their error, so every interval here comes from resampling conditions. Groups are made without
the outcome. Source of the list: evaluation.md 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import ndtr
from scipy.stats import rankdata

from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.bootstrap import RESAMPLES, interval, resample_ratios
from pvae_pyro.evaluation.distributions import interval_ends
from pvae_pyro.evaluation.metrics import LEVELS

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Labels = NDArray[np.str_]

TERCILES = ("low", "middle", "high")
BINS = 10
_ISOTONIC_POINTS = 100
_ISOTONIC_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Intervals:
    """Central intervals of C conditions over G genes: whether they hold the measured value, and how wide they are.

    inside, width (L, C, G) at ``levels`` (L,); counted (G,) are the genes that coverage counts.
    """

    levels: tuple[float, ...]
    inside: Mask
    width: Array
    counted: Mask

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        measured: ArrayLike,
        counted: ArrayLike,
        levels: Sequence[float] = LEVELS,
    ) -> Intervals:
        """measured (C, G), counted (G,). Raises ValueError for a point prediction, which has no intervals."""
        y, chosen = np.asarray(measured, float), tuple(levels)
        inside, width = np.empty((len(chosen), *y.shape), bool), np.empty((len(chosen), *y.shape))
        for row in range(len(y)):
            ends = interval_ends(prediction, row, chosen)
            if ends is None:
                raise ValueError("a point prediction has no intervals")
            inside[:, row], width[:, row] = (ends[0] <= y[row]) & (y[row] <= ends[1]), ends[1] - ends[0]
        return cls(chosen, inside, width, np.asarray(counted, bool))


def coverage_table(
    intervals: Intervals,
    groups: Mapping[str, ArrayLike],
    reference_width: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Coverage and width of intervals, overall and by group.

    groups: name -> labels, which broadcast to (C, G): (C, 1) for groups of conditions, (G,) for groups of genes; an empty
    label counts nowhere. One row per group, label (in sorted order, terciles low to high) and level: group, label, level,
    coverage, low, high (95 % bootstrap over conditions), width (mean, unit of the data), relative_width (sum over that of
    reference_width (L, C, G), such as the additive rule's; nan without), conditions, cases (gene x condition). A condition
    weighs as many cases as it has in the group.
    """
    shape = intervals.inside.shape[1:]
    every = {"overall": np.full((1, 1), "all")} | dict(groups)
    rows = []
    for name, given in every.items():
        labels = np.broadcast_to(np.asarray(given), shape)
        for label in _ordered(np.unique(labels[:, intervals.counted])):
            member = (labels == label) & intervals.counted
            count = member.sum(axis=1).astype(float)
            held = (intervals.inside & member).sum(axis=2).T.astype(float)  # (C, L)
            ends = interval(
                resample_ratios(held, np.repeat(count[:, None], held.shape[1], 1), resamples, seed)
            )
            width = (intervals.width * member).sum(axis=(1, 2))
            other = (
                None if reference_width is None else (np.asarray(reference_width) * member).sum(axis=(1, 2))
            )
            for i, level in enumerate(intervals.levels):
                rows.append(
                    {
                        "group": name,
                        "label": label,
                        "level": level,
                        "coverage": held[:, i].sum() / count.sum(),
                        "low": ends[0][i],
                        "high": ends[1][i],
                        "width": width[i] / count.sum(),
                        "relative_width": width[i] / other[i]
                        if other is not None and other[i] > 0
                        else np.nan,
                        "conditions": int((count > 0).sum()),
                        "cases": int(count.sum()),
                    }
                )
    return pd.DataFrame(rows)


def quantile_groups(values: ArrayLike, count: int, names: Sequence[str] | None = None) -> Labels:
    """Labels of ``count`` groups of nearly equal size by rank, of the shape of values; ties share a group; nan has none ("").

    Names default to "1" (smallest) to str(count), padded with zeros so that they sort.
    """
    x = np.asarray(values, float)
    called = [f"{one + 1:0{len(str(count))}d}" for one in range(count)] if names is None else list(names)
    known = ~np.isnan(x)
    labels = np.full(x.shape, "", dtype=f"<U{max(map(len, called))}")
    rank = rankdata(x[known], method="average")
    place = np.minimum(((rank - 0.5) / max(len(rank), 1) * count).astype(int), count - 1)
    labels[known] = np.asarray(called)[place]
    return labels


def terciles(values: ArrayLike) -> Labels:
    """``quantile_groups`` of three: "low", "middle" and "high"."""
    return quantile_groups(values, 3, TERCILES)


def pit(prediction: Prediction, measured: ArrayLike, seed: int = 0) -> Array:
    """Probability integral transform ``u = P(X <= y)`` of measured values (C, G), uniform where calibrated.

    Of S draws, ``(#{x < y} + v (1 + #{x = y})) / (S + 1)`` with v uniform: exactly uniform when y is one more draw. Of a
    Normal, its distribution function (sd 0: 0, 1, or a uniform number where y is the mean). Raises ValueError for points.
    """
    y = np.asarray(measured, float)
    rng = np.random.default_rng(seed)
    if prediction.draws is not None:
        x = prediction.draws
        below = np.stack([(x[:, row] < y[row]).sum(axis=0) for row in range(len(y))])
        same = np.stack([(x[:, row] == y[row]).sum(axis=0) for row in range(len(y))])
        return np.asarray((below + rng.uniform(size=y.shape) * (1 + same)) / (len(x) + 1))
    if prediction.sd is None:
        raise ValueError("a point prediction has no distribution to transform by")
    error = y - prediction.mean
    sure = np.where(error == 0, rng.uniform(size=y.shape), (error > 0).astype(float))
    return np.where(prediction.sd > 0, ndtr(error / np.where(prediction.sd > 0, prediction.sd, 1.0)), sure)


def pit_difference(
    u: ArrayLike, points: int = 99, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """ECDF of PIT values (C, G) minus that of the uniform law, which is 0 where calibrated.

    A hill on the left and a valley on the right is a prediction too narrow, the reverse one too wide; all above zero is
    one too high. Columns u, difference, low, high: a band for all points at once, from resampling conditions, by the
    largest deviation in units of sqrt(u (1 - u)). The deviations' own standard errors would be a worse unit: near 0 and 1
    they are too small, and a band of 95 % held the truth in 57 to 80 of 100 simulated sets of 40 conditions, this one in
    96. One condition has no band (nan).
    """
    values = np.asarray(u, float)
    grid = np.arange(1, points + 1) / (points + 1)
    each = np.stack([np.searchsorted(np.sort(row), grid, side="right") / len(row) for row in values]) - grid
    centre = each.mean(axis=0)
    reach = np.full(points, np.nan)
    if len(values) > 1:
        samples = resample_ratios(each, np.ones_like(each), resamples, seed)
        shape = np.sqrt(grid * (1 - grid))
        reach = float(np.quantile((np.abs(samples - centre) / shape).max(axis=1), level)) * shape
    return pd.DataFrame({"u": grid, "difference": centre, "low": centre - reach, "high": centre + reach})


def probability_above(prediction: Prediction, threshold: ArrayLike) -> Array:
    """P(measured value > threshold), (C, G), threshold broadcast to that: with the control mean, P(shift is up).

    Draws equal to the threshold count half; a point prediction gives 0, 1/2 or 1.
    """
    limit = np.broadcast_to(np.asarray(threshold, float), prediction.mean.shape)
    if prediction.draws is not None:
        x = prediction.draws
        rows = range(len(limit))
        return np.stack([((x[:, r] > limit[r]) + 0.5 * (x[:, r] == limit[r])).mean(axis=0) for r in rows])
    gap = prediction.mean - limit
    sure = np.where(gap == 0, 0.5, (gap > 0).astype(float))
    if prediction.sd is None:
        return sure
    return np.where(prediction.sd > 0, ndtr(gap / np.where(prediction.sd > 0, prediction.sd, 1.0)), sure)


def reliability(
    probability: ArrayLike,
    happened: ArrayLike,
    counted: ArrayLike | None = None,
    bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """How often what was given a probability (C, G) happened (C, G), in bins of equal width of the probability.

    counted: broadcastable to (C, G), cases to count (default: all). Columns from, to, predicted (mean probability of the
    bin), observed (share), low, high (95 % bootstrap over conditions), conditions, cases; empty bins are left out.
    """
    p, hit, member = _cases(probability, happened, counted)
    place = np.minimum((p * bins).astype(int), bins - 1)
    rows = []
    for index in range(bins):
        inside = member & (place == index)
        count = inside.sum(axis=1).astype(float)
        if not count.sum():
            continue
        hits = (hit & inside).sum(axis=1).astype(float)
        low, high = interval(resample_ratios(hits[:, None], count[:, None], resamples, seed))
        rows.append(
            {
                "from": index / bins,
                "to": (index + 1) / bins,
                "predicted": float(p[inside].mean()),
                "observed": hits.sum() / count.sum(),
                "low": low[0],
                "high": high[0],
                "conditions": int((count > 0).sum()),
                "cases": int(count.sum()),
            }
        )
    columns = ["from", "to", "predicted", "observed", "low", "high", "conditions", "cases"]
    return pd.DataFrame(rows, columns=columns)


def isotonic_reliability(
    probability: ArrayLike,
    happened: ArrayLike,
    counted: ArrayLike | None = None,
    resamples: int = _ISOTONIC_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Reliability without bins to choose: the rising curve that fits what happened best (CORP, Dimitriadis et al. 2021).

    Probabilities are first put together in hundredths. Columns predicted (mean probability of a hundredth), fitted, low,
    high (95 % band: the curve fitted anew to resampled conditions), cases.
    """
    p, hit, member = _cases(probability, happened, counted)
    place = np.minimum((p * _ISOTONIC_POINTS).astype(int), _ISOTONIC_POINTS - 1)
    count, hits, total = (np.zeros((len(p), _ISOTONIC_POINTS)) for _ in range(3))
    rows = np.broadcast_to(np.arange(len(p))[:, None], p.shape)[member]
    for into, value in ((count, member), (hits, hit), (total, p)):
        np.add.at(into, (rows, place[member]), value[member])
    used = count.sum(axis=0) > 0
    count, hits, total = count[:, used], hits[:, used], total[:, used]
    at = total.sum(axis=0) / count.sum(axis=0)
    curves = np.full((resamples, int(used.sum())), np.nan)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(p), np.full(len(p), 1 / len(p)), size=resamples).astype(float)
    for index, weight in enumerate(weights):
        curves[index] = _isotonic(weight @ hits, weight @ count, at)
    low, high = interval(curves)
    fitted = _isotonic(hits.sum(axis=0), count.sum(axis=0), at)
    return pd.DataFrame(
        {"predicted": at, "fitted": fitted, "low": low, "high": high, "cases": count.sum(axis=0).astype(int)}
    )


def _isotonic(hits: Array, count: Array, at: Array) -> Array:
    """Rising fit to shares hits / count, interpolated where a resample has no case; nan without any."""
    there = count > 0
    if not there.any():
        return np.full(len(at), np.nan)
    fitted = isotonic_regression(hits[there] / count[there], weights=count[there]).x
    return np.asarray(np.interp(at, at[there], fitted))


def _cases(
    probability: ArrayLike, happened: ArrayLike, counted: ArrayLike | None
) -> tuple[Array, Mask, Mask]:
    p, hit = np.asarray(probability, float), np.asarray(happened, bool)
    if p.shape != hit.shape or p.ndim != 2 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"probabilities between 0 and 1 are needed for each of {hit.shape} cases, found {p.shape}"
        )
    member = (
        np.ones(p.shape, bool) if counted is None else np.broadcast_to(np.asarray(counted, bool), p.shape)
    )
    return p, hit, np.asarray(member)


def _ordered(labels: Labels) -> list[str]:
    found = [str(one) for one in labels if str(one)]
    return [one for one in TERCILES if one in found] if set(found) <= set(TERCILES) else found
