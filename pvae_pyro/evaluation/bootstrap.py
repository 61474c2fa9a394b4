"""Bootstrap over conditions: the unit of replication is the condition, never the cell or the gene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
_BLOCK = 20_000_000  # entries of the resampling weights held at a time


def resample_ratios(numerator: Array, denominator: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Ratios ``sum w_c a_c / sum w_c b_c`` under resampled conditions, (resamples, columns).

    numerator and denominator (C, columns); w counts how often a condition was drawn among C draws with
    replacement. All columns share the resamples, so differences of columns are paired. nan where the
    denominator is not positive.
    """
    count = len(numerator)
    rng = np.random.default_rng(seed)
    result = np.full((resamples, numerator.shape[1]), np.nan)
    step = max(1, _BLOCK // max(count, 1))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float)
        below = weights @ denominator
        np.divide(weights @ numerator, below, out=result[start : start + size], where=below > 0)
    return result


def interval(samples: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Percentile interval: low and high, (columns,), of statistics (resamples, columns), leaving out nan."""
    ends = np.full((2, samples.shape[1]), np.nan)
    for column in range(samples.shape[1]):
        values = samples[:, column]
        values = values[~np.isnan(values)]
        if len(values):
            ends[:, column] = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return ends[0], ends[1]


@dataclass(frozen=True)
class PairedDifference:
    """Method minus reference on one metric, with 95 % interval and standard error over conditions.

    better: share of conditions on which the method is nearer to perfect (ties count half).
    """

    method: str
    reference: str
    metric: str
    stratum: str
    difference: float
    low: float
    high: float
    standard_error: float
    better: float
    conditions: int
