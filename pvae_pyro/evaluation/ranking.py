"""Whether a method knows where it is wrong: ranking of conditions by stated doubt, which is not calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

ORACLE = "oracle (by the error itself)"
RISK_RESAMPLES = 2000


def risk_coverage(error: ArrayLike, doubt: ArrayLike) -> Array:
    """Mean error of the k conditions of least doubt, for k = 1 to C, (C,); equal doubts share their error evenly."""
    e, d = np.asarray(error, float), np.asarray(doubt, float)
    if e.shape != d.shape or e.ndim != 1 or not len(e):
        raise ValueError(f"one error and one doubt per condition are needed, found {e.shape} and {d.shape}")
    _, place, count = np.unique(d, return_inverse=True, return_counts=True)
    shared = (np.bincount(place, weights=e) / count)[place]
    return np.asarray(np.cumsum(shared[np.argsort(d, kind="stable")]) / np.arange(1, len(e) + 1))


def aurc(error: ArrayLike, doubt: ArrayLike) -> float:
    """Area under ``risk_coverage``, its mean over k: what the kept conditions cost, all shares kept weighing the same.

    Source: Geifman & El-Yaniv 2017. A doubt that is the same for all gets the mean error, the oracle the least there is.
    """
    return float(risk_coverage(error, doubt).mean())


def partial_spearman(first: ArrayLike, second: ArrayLike, given: ArrayLike | None = None) -> float:
    """Rank correlation of two (C,) values, what both owe to a third (C,) taken out; nan where nothing is left to vary."""
    ranks = [rankdata(np.asarray(one, float)) for one in (first, second)]
    columns = [np.ones(len(ranks[0]))] + ([] if given is None else [rankdata(np.asarray(given, float))])
    basis = np.stack(columns, axis=1)
    rest = [one - basis @ np.linalg.lstsq(basis, one, rcond=None)[0] for one in ranks]
    sizes = [float(np.sqrt((one**2).sum())) for one in rest]
    if min(sizes) <= 1e-8 * len(ranks[0]):
        return float("nan")
    return float(np.clip(rest[0] @ rest[1] / (sizes[0] * sizes[1]), -1.0, 1.0))


def ranking_table(
    error: ArrayLike,
    doubts: Mapping[str, ArrayLike],
    effect: ArrayLike,
    resamples: int = RISK_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """AURC of every way to doubt (C,), beside the oracle, and its rank correlation with the error (C,).

    Columns doubt, aurc, low, high (95 % bootstrap over conditions, the same resamples for all), lost (share of what can
    be gained by ranking that is lost: 0 the oracle, 1 no better than chance, above 1 worse), spearman, partial_spearman
    (the size of the effect (C,), such as the length of the predicted shift, taken out), conditions.
    """
    e, size = np.asarray(error, float), np.asarray(effect, float)
    asked = {name: np.asarray(doubt, float) for name, doubt in doubts.items()} | {ORACLE: e}
    drawn = np.random.default_rng(seed).integers(len(e), size=(resamples, len(e)))
    best, chance = aurc(e, e), float(e.mean())
    rows = []
    for name, doubt in asked.items():
        low, high = np.quantile([aurc(e[one], doubt[one]) for one in drawn], [0.025, 0.975])
        own = aurc(e, doubt)
        rows.append(
            {
                "doubt": name,
                "aurc": own,
                "low": float(low),
                "high": float(high),
                "lost": (own - best) / (chance - best) if chance > best else float("nan"),
                "spearman": partial_spearman(doubt, e),
                "partial_spearman": partial_spearman(doubt, e, size),
                "conditions": len(e),
            }
        )
    return pd.DataFrame(rows)
