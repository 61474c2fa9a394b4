"""results.csv as numbers and as text, and the names under which methods and data sets are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from .arms import CONTROL_CELLS, MEASURED, MODEL, MODEL_CELLS, PERFECT, START, USER

DATA = {"semi-synthetic": "semi-synthetic Norman", "real-subset": "real subset", USER: "your file"}
DIGITS = {"l2": 2, "crps": 4, "energy_distance": 2, "l2_top1000": 2, "mmd_legacy": 2, "spread_ratio": 2}
OURS = {
    PERFECT: "oracle sampler: other cells of the condition",
    CONTROL_CELLS: "no change: control cells",
    MODEL_CELLS: "ours, new cells",
    "no change": "no change: control mean",
    "mean of the training perturbations": "mean of the training perturbations",
    "mean of the perturbed training cells": "mean of the perturbed training cells",
    "bilinear ridge on gene embeddings": "bilinear ridge on gene embeddings",
    "mean of the singles": "mean of the singles",
    "larger single effect": "larger single effect",
    "additive": "additive",
    "scaled additive": "0.85 x additive",
    "low-rank additive": "low-rank additive",
    "0.85 x low-rank additive": "0.85 x low-rank additive",
    "shrunk additive": "shrunk additive",
    "0.85 x shrunk additive": "0.85 x shrunk additive",
    "probabilistic additive (sampling noise only)": "additive, with sampling noise",
    "probabilistic 0.85 x shrunk additive (sampling noise only)": "0.85 x shrunk additive, with sampling noise",
    START: "ours, mean, warm start (0 epochs)",
    MODEL: "ours, mean",
    MEASURED: "oracle floor: measured mean",
}


class Results:
    """Values of a results.csv, and the data sets that it has arms of."""

    def __init__(self, path: Path) -> None:
        self.rows = pd.read_csv(path)
        self.data = [name for name in DATA if self.rows["arm"].str.startswith(f"{name} ").any()]

    def values(self, arm: str, what: str, metric: str) -> pd.Series:
        """One value a seed."""
        rows = self.rows
        return rows.loc[(rows["arm"] == arm) & (rows["what"] == what) & (rows["metric"] == metric), "value"]

    def of(self, data: str, method: str, conditions: str, metric: str, model: str = "default") -> pd.Series:
        """One value a seed of a method on a set of conditions, whether a rule or fitted."""
        arm = f"{data} {model}" if method in (MODEL, MODEL_CELLS, START) else f"{data} rules"
        return self.values(arm, f"{method} [{conditions}]", metric)

    def text(self, data: str, method: str, conditions: str, metric: str, model: str = "default") -> str:
        """The mean over seeds, with half their range where that is visible; "-" without values."""
        found = self.of(data, method, conditions, metric, model)
        if found.empty:
            return "-"
        digits = DIGITS.get(metric, 4 if metric.startswith(("rmse", "r2")) else 3)
        half = 0.5 * (found.max() - found.min())
        return f"{found.mean():.{digits}f}" + (f" ± {half:.{digits}f}" if round(half, digits) > 0 else "")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown of the rows that hold a value."""
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    kept = [row for row in rows if set(row[1:]) != {"-"}]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in kept])
