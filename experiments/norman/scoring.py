"""Scores of one method on the cells of every test condition: the legacy metrics of the protocol, and honest ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import pvae_pyro as pv
from pvae_pyro.evaluation.cells import energy_distance, spread_ratio
from pvae_pyro.evaluation.legacy import (
    mmd_legacy,
    r2_cells,
    r2_mean_legacy,
    rmse_cell_raw,
    rmse_cell_rel,
    top_de_genes,
)
from pvae_pyro.evaluation.points import r2_mean
from pvae_pyro.screen import CONTROL

from ..run_arms import Rows
from .protocol import BATCH, CONFIG, Task

Array = NDArray[np.float64]

# one value a condition, from its cells; *_de: the 20 genes most changed in the test cells
LEGACY = ("rmse_cell_rel", "r2_mean_legacy", "mmd_legacy", "rmse_cell_rel_whole", "rmse_cell_raw", "r2_mean_legacy_whole",
          "r2_mean_whole", "r2_pearson", "r2_delta", "r2_cells", "rmse_pb", "rmse_pb_rel", "rmse_cell_rel_de",
          "r2_mean_legacy_de")  # fmt: skip
HONEST = ("l2", "l2_top1000", "delta_pearson", "delta_slope", "crps", "coverage_90", "energy_distance", "spread_ratio")
SUMMED = ("mse_ratio_numerator", "mse_ratio_denominator")
WITH_ERROR = ("rmse_cell_rel", "l2", "delta_pearson")
FEW = ("rmse_cell_rel", "r2_mean_legacy", "mmd_legacy", "l2", "delta_pearson", "crps", "coverage_90", "mse_ratio")


@dataclass(frozen=True, eq=False)
class Method:
    """A method's cells of a test condition: its mean, repeated, or what `cells(condition, n)` draws, (n, G)."""

    prediction: pv.Prediction
    cells: Callable[[str, int], Array] | None = None


class Cells:
    """The test cells of every condition, and what the scores need of training: control moments, principal directions."""

    def __init__(self, task: Task) -> None:
        self.task, self.truth = task, task.test.summary()
        self.training = task.train.summary()
        c = self.training.index(CONTROL)
        self.control = (self.training.mean[c], self.training.variance[c], int(self.training.n_cells[c]))
        self.genes = top_de_genes(self.truth.mean, self.truth.variance, self.truth.n_cells, self.control)
        rows = np.random.default_rng(0).choice(task.train.n_cells, min(2000, task.train.n_cells), replace=False)
        some = task.train.expression[np.sort(rows)].toarray().astype(float)
        _, _, directions = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)
        self.directions = directions[: CONFIG["scores"]["components"]].T

    def measured(self, row: int) -> Array:
        """Cells (n, G) of the test condition in a row of `truth`, in the order of the file."""
        return np.asarray(self.task.test.expression[self.task.test.condition == row].toarray(), float)


def shifted(real: Array) -> Array:
    """Each cell in the place of another, half of the condition away: a sample of the cells' own law, none meets itself."""
    return np.roll(real, len(real) // 2, axis=0)


def of_condition(data: Cells, row: int, real: Array, predicted: Array) -> dict[str, float]:
    """Every score of cells predicted (n, G) for n measured ones; nan in the batched ones below a batch."""
    control, genes = np.asarray(data.control[0]), data.genes[row]
    x, xhat = real.mean(axis=0), predicted.mean(axis=0)
    batches = [slice(i, i + BATCH) for i in range(0, len(real) - BATCH + 1, BATCH)]
    each = [(rmse_cell_rel(predicted[b], real[b]), float(r2_mean_legacy(predicted[b].mean(axis=0), real[b].mean(axis=0))),
             mmd_legacy(predicted[b], real[b])) for b in batches]  # fmt: skip
    rmse, r2, mmd = np.mean(each, axis=0) if each else np.full(3, np.nan)
    error = float(np.sqrt(((xhat - x) ** 2).mean()))
    # half of the cells, which `shifted` replaces by the other half
    some = slice(0, min(len(real) // 2, CONFIG["scores"]["distance_cells"]))
    flat = xhat.std() == 0 or x.std() == 0
    return {
        "rmse_cell_rel": float(rmse),
        "r2_mean_legacy": float(r2),
        "mmd_legacy": float(mmd),
        "rmse_cell_rel_whole": rmse_cell_rel(predicted, real),
        "rmse_cell_raw": rmse_cell_raw(predicted, real),
        "r2_mean_legacy_whole": float(r2_mean_legacy(xhat, x)),
        "r2_mean_whole": float(r2_mean(xhat, x)),
        "r2_pearson": float("nan") if flat else float(np.corrcoef(xhat, x)[0, 1] ** 2),
        "r2_delta": float(r2_mean(xhat - control, x - control)),
        "r2_cells": r2_cells(predicted, real),
        "rmse_pb": error,
        "rmse_pb_rel": error / float(np.sqrt((x**2).mean())),
        "rmse_cell_rel_de": rmse_cell_rel(predicted[:, genes], real[:, genes]),
        "r2_mean_legacy_de": float(r2_mean_legacy(xhat[genes], x[genes])),
        "energy_distance": energy_distance(real[some] @ data.directions, predicted[some] @ data.directions),
        "spread_ratio": spread_ratio(predicted.var(axis=0), real.var(axis=0))[0],
    }


def scored(data: Cells, methods: Mapping[str, Method], floors: bool = False) -> pd.DataFrame:
    """One row per test condition, method and metric. `floors`: also what two halves of the measured cells score."""
    parts: list[tuple[str, str, str, float]] = []
    for row, name in enumerate(data.truth.conditions):
        real = data.measured(row)
        for method, one in methods.items():
            mean = np.asarray(one.prediction.mean[row], float)
            predicted = np.tile(mean, (len(real), 1)) if one.cells is None else one.cells(name, len(real))
            parts += [(name, method, k, v) for k, v in of_condition(data, row, real, predicted).items()]
    # cells of one method may have several names, its pseudobulks are scored once
    bulk = {method: one.prediction for method, one in methods.items() if one.cells is None}
    table = pv.evaluate(data.truth, bulk, data.control, seen_targets=data.task.train.targets, training=data.training).rows
    table = table[table["metric"].isin([*HONEST, *SUMMED]) & (floors | table["method"].isin(list(bulk)))]
    of_cells = pd.DataFrame(parts, columns=["condition", "method", "metric", "value"])
    return pd.concat([of_cells, table[of_cells.columns]], ignore_index=True)


def averaged(table: pd.DataFrame, sets: Mapping[str, Sequence[str]]) -> Rows:
    """Means over the conditions of every set, as rows `method [set]`; ``mse_ratio`` is the ratio of sums.

    `_se`: standard error over conditions, their sd without correction over sqrt(n), as discrepancy_vae prints it. All
    doubles are pooled in the legacy metrics alone, which do so; the tuned-on even doubles are in `doubles`.
    """
    rows: Rows = []
    for name, conditions in sets.items():
        mine = table[table["condition"].isin(conditions)]
        for (method, metric), values in mine.groupby(["method", "metric"], sort=False)["value"]:
            known = values.dropna().to_numpy(float)
            if not len(known) or metric in SUMMED or (name == "all doubles" and metric not in LEGACY):
                continue
            if name in ("odd doubles", "all doubles") and metric not in FEW:
                continue
            rows.append((f"{method} [{name}]", str(metric), float(known.mean())))
            if metric in WITH_ERROR:
                rows.append((f"{method} [{name}]", f"{metric}_se", float(known.std() / np.sqrt(len(known)))))
        if name != "all doubles":
            sums = mine[mine["metric"].isin(SUMMED)].groupby(["method", "metric"], sort=False)["value"].sum().unstack()
            rows += [(f"{m} [{name}]", "mse_ratio", float(r[SUMMED[0]] / r[SUMMED[1]])) for m, r in sums.iterrows()]
    return rows


def floor_formula(data: Cells) -> Rows:
    """sqrt(f), f = w / (w + m2): the relative cell RMSE of the true mean, and sqrt(2 f), that of a perfect sampler."""
    rows: Rows = []
    for name, conditions in data.task.sets.items():
        at = [data.truth.index(c) for c in conditions]
        w, m2 = data.truth.variance[at].mean(axis=1), (data.truth.mean[at] ** 2).mean(axis=1)
        f = w / (w + m2)
        rows += [(f"formula [{name}]", "floor", float(np.sqrt(f).mean())),
                 (f"formula [{name}]", "perfect_sampler", float(np.sqrt(2 * f).mean())),
                 (f"formula [{name}]", "f", float(f.mean()))]  # fmt: skip
    return rows
