"""Scores of a prediction, pair by pair, and the normal widths that point rivals are given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import pvae_pyro as pv
from pvae_pyro.evaluation.baselines import interaction_variance
from pvae_pyro.evaluation.effects import cell_variance

from ..run_arms import Rows
from .screens import Bench

Array = NDArray[np.float64]
METRICS = ("l2", "delta_pearson", "crps", "coverage_90")
PAIRED = METRICS[:3]  # stored pair by pair, for paired differences
MEAN = "mean over pairs"


def widened(bench: Bench, mean: Array, pairs: tuple[str, ...], left: Array, even: tuple[str, ...]) -> pv.Prediction:
    """Normal around `mean` (C, G): per-gene variance of the errors `left` (N, G) on the even pairs, plus sampling noise.

    `left` comes from means that did not see these pairs. Errors hold the noise of the measured pair, which is taken off and put
    back for the number of cells of each pair predicted; genes are drawn towards a common ratio to cell variance.
    """
    noise, tuning, truth = cell_variance(bench.summary), bench.summary.restrict(even), bench.summary.restrict(pairs)
    width = interaction_variance(left, noise / tuning.n_cells[:, None], np.ones(len(left)), noise)
    return pv.Prediction(mean, np.sqrt(width + noise / truth.n_cells[:, None]))


def errors(bench: Bench, mean: Array, pairs: tuple[str, ...]) -> Array:
    """Measured minus predicted, (C, G)."""
    return np.asarray(bench.summary.restrict(pairs).mean - mean)


def scored(bench: Bench, prediction: pv.Prediction, pairs: tuple[str, ...], what: str = "", each: bool = True) -> Rows:
    """Mean of every metric over the pairs, and the value of each pair; `what` marks rows of a second prediction of an arm."""
    truth, control = bench.summary.restrict(pairs), bench.summary.index("control")
    summary = bench.summary
    reference = summary.mean[control], summary.variance[control], int(summary.n_cells[control])
    table = pv.evaluate(truth, {"it": prediction}, reference).rows
    table = table[(table["method"] == "it") & table["metric"].isin(METRICS)]
    means = table.groupby("metric", sort=False)["value"].mean()
    rows: Rows = [(f"{MEAN}{what}", str(metric), float(value)) for metric, value in means.items()]
    if each:
        chosen = table[table["metric"].isin(PAIRED)]
        values = zip(chosen["condition"], chosen["metric"], chosen["value"], strict=True)
        rows += [(str(condition), str(metric), float(value)) for condition, metric, value in values]
    return rows
