"""Scores of a whole predictive distribution, condition by condition, whichever way it is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.metrics import LEVELS, crps_normal, crps_samples, ends_draws, ends_normal
from pvae_pyro.evaluation.proper import (
    LOG_SCORE_DRAWS,
    energy_score,
    interval_score,
    log_score_normal,
    log_score_samples,
    variogram_score,
)

Array = NDArray[np.float64]

COVERAGES = tuple(f"coverage_{round(100 * level)}" for level in LEVELS)
INTERVAL_LEVEL = 0.90


def interval_ends(
    prediction: Prediction, row: int, levels: tuple[float, ...] = LEVELS
) -> tuple[Array, Array] | None:
    """Low and high ends (levels, G) of a condition's central intervals; None for a point prediction."""
    if prediction.draws is not None:
        return ends_draws(prediction.draws[:, row], levels)
    if prediction.sd is not None:
        return ends_normal(prediction.mean[row], prediction.sd[row], levels)
    return None


def marginal_scores(
    prediction: Prediction, rows: NDArray[np.int64], measured: Array, informative: NDArray[np.bool_]
) -> dict[str, Array]:
    """CRPS, interval score and coverages of conditions, (rows,) each, means over genes; for points the CRPS alone.

    measured (rows, G). Coverage runs over the informative genes (G,). Raises InputError for a single draw.
    """
    if prediction.draws is not None and len(prediction.draws) < 2:
        raise InputError("One draw has no spread to score: predict with two draws or more.")
    crps, winkler = np.empty(len(rows)), np.empty(len(rows))
    covered = np.empty((len(rows), len(LEVELS)))
    for i, row in enumerate(rows):
        if prediction.draws is not None:
            crps[i] = crps_samples(prediction.draws[:, row], measured[i]).mean()
        elif prediction.sd is not None:
            crps[i] = crps_normal(prediction.mean[row], prediction.sd[row], measured[i]).mean()
        else:
            crps[i] = np.abs(prediction.mean[row] - measured[i]).mean()
        ends = interval_ends(prediction, int(row))
        if ends is not None:
            inside = (ends[0] <= measured[i]) & (measured[i] <= ends[1])
            covered[i] = inside[:, informative].mean(axis=1) if informative.any() else np.nan
            at = LEVELS.index(INTERVAL_LEVEL)
            winkler[i] = interval_score(ends[0][at], ends[1][at], measured[i], INTERVAL_LEVEL).mean()
    if prediction.draws is None and prediction.sd is None:
        return {"crps": crps}
    return {"crps": crps, "interval_score_90": winkler} | {
        name: covered[:, i] for i, name in enumerate(COVERAGES)
    }


def joint_scores(
    prediction: Prediction, rows: NDArray[np.int64], measured: Array, scale: Array, genes: NDArray[np.int64]
) -> dict[str, Array]:
    """Energy score, and variogram score on ``genes``, of joint draws, (rows,) each; nothing without draws."""
    if prediction.draws is None:
        return {}
    found: dict[str, list[Array]] = {"energy_score": [], "variogram_score": []}
    for i, row in enumerate(rows):
        drawn, y = prediction.draws[:, [row]], measured[[i]]
        found["energy_score"].append(energy_score(drawn, y, scale))
        found["variogram_score"].append(variogram_score(drawn[:, :, genes], y[:, genes], scale[genes]))
    return {name: np.concatenate(values) for name, values in found.items()}


def log_density(prediction: Prediction, rows: NDArray[np.int64], measured: Array) -> Array | None:
    """Log density of every measured value, (rows, G); None for points and for too few draws."""
    if prediction.draws is not None:
        if len(prediction.draws) < LOG_SCORE_DRAWS:
            return None
        return np.stack(
            [log_score_samples(prediction.draws[:, row], y) for row, y in zip(rows, measured, strict=True)]
        )
    if prediction.sd is not None:
        return log_score_normal(prediction.mean[rows], prediction.sd[rows], measured)
    return None


def log_scores(densities: Mapping[str, Array], partial: Collection[str]) -> dict[str, Array]:
    """Mean over genes, in nats per gene, (rows,), on the genes where no method lacks a density."""
    found = {method: ~np.isnan(values).any(axis=0) for method, values in densities.items()}
    whole = [genes for method, genes in found.items() if genes.any() and method not in partial]
    if not whole:
        return {}
    common = np.logical_and.reduce(whole)
    counted = {method: common & genes for method, genes in found.items()}
    return {
        method: densities[method][:, genes].mean(axis=1) for method, genes in counted.items() if genes.any()
    }
