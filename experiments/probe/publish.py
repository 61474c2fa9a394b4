"""python -m experiments.probe.publish: results.csv into the tables of README.md, and the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ..filling import NOT_RUN, fill, markdown
from .representations import (
    BACKGROUND,
    DEPTH,
    HIDDEN_BACKGROUND,
    HIDDEN_RESPONSIVE,
    NOISE,
    PCA_FEW,
    PCA_MANY,
    RESPONSIVE,
    SUPERVISED,
    TOLD,
)

HERE = Path(__file__).parent
START = ", warm start"
ORDER = (DEPTH, BACKGROUND, f"{BACKGROUND}{START}", HIDDEN_BACKGROUND, NOISE, HIDDEN_RESPONSIVE, PCA_FEW, PCA_MANY, SUPERVISED,
         RESPONSIVE, f"{RESPONSIVE}{START}", TOLD)  # fmt: skip
SCREENS = {"papalexi": "Papalexi (real)", "norman": "semi-synthetic Norman"}
OFF = ", no alignment"


class Results:
    """Values of results.csv: `of(arm, what, metric)` for every seed."""

    def __init__(self, path: Path) -> None:
        self.rows = pd.read_csv(path)

    def of(self, arm: str, what: str, metric: str) -> np.ndarray:
        r = self.rows
        return r[(r["arm"] == arm) & (r["what"] == what) & (r["metric"] == metric)].sort_values("seed")["value"].to_numpy()

    def cell(self, arm: str, what: str, metric: str) -> str:
        """Mean over seeds, and their range for the headline."""
        values = self.of(arm, what, metric)
        if not len(values):
            return "-"
        text = f"{values.mean():.3f}"
        ranged = metric == "balanced_accuracy" and len(values) > 1
        return f"{text} ({values.min():.3f} to {values.max():.3f})" if ranged else text


def table(results: Results, screen: str) -> str:
    """One row a representation, chance first."""
    head = [SCREENS[screen], "features", "balanced accuracy", "its floor", "top 1", "top 5", "unseen cells only", "no alignment"]
    if not len(results.of(screen, "chance", "top_1")):
        return NOT_RUN
    chance = [f"{results.of(screen, 'chance', m).mean():.3f}" for m in ("balanced_accuracy", "top_1", "top_5")]
    rows = [["*chance*", "", chance[0], "", chance[1], chance[2], "", ""]]
    metrics = ("balanced_accuracy", "floor_balanced_accuracy", "top_1", "top_5", "balanced_accuracy_unseen")
    for what in ORDER:
        if len(features := results.of(screen, what, "features")):
            cells = [results.cell(screen, what, m) for m in metrics]
            rows.append([what, f"{features.mean():.0f}", *cells, results.cell(f"{screen}{OFF}", what, "balanced_accuracy")])
    return markdown(head, rows)


def _panel(axis: Axes, results: Results, screen: str) -> None:
    places = np.arange(len(ORDER))[::-1]
    for place, what in zip(places, ORDER, strict=True):
        for arm, face, lift in ((screen, "black", 0.15), (f"{screen}{OFF}", "white", -0.15)):
            values = results.of(arm, what, "balanced_accuracy")
            label = {"black": "default", "white": "no alignment"}[face] if what == ORDER[0] else None
            axis.plot(values, np.full(len(values), place + lift), "o", color="black", mfc=face, markersize=4, label=label)
        floor = results.of(screen, what, "floor_balanced_accuracy")
        label = "labels permuted" if what == ORDER[0] else None
        axis.plot(floor, np.full(len(floor), place), "|", color="0.5", markersize=10, label=label)
    for chance in results.of(screen, "chance", "balanced_accuracy")[:1]:
        axis.axvline(chance, color="0.5", linewidth=1, linestyle=":")
    axis.set(title=SCREENS[screen], xlabel="balanced accuracy on held-out cells\n(a dot for each seed; dotted: chance)",
             xscale="log", xlim=(0.006, 1.1))  # fmt: skip
    axis.set_xticks([0.01, 0.03, 0.1, 0.3, 1.0], ["0.01", "0.03", "0.1", "0.3", "1"])
    axis.set_yticks(places, ORDER, fontsize=8)
    axis.grid(axis="y", color="0.93")
    axis.set_axisbelow(True)


def figure(results: Results, path: Path) -> None:
    """Balanced accuracy of every representation, a panel for each screen."""
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    for axis, screen in zip(axes, SCREENS, strict=True):
        _panel(axis, results, screen)
    axes[0].legend(fontsize=8, frameon=False, loc="upper right")
    drawn.savefig(path, dpi=100)
    plt.close(drawn)


def main() -> None:
    results = Results(HERE / "results.csv")
    fill(HERE / "README.md", "probe", {screen: table(results, screen) for screen in SCREENS})
    figure(results, HERE / "probe.png")


if __name__ == "__main__":
    main()
