"""python -m experiments.ppc.figure [--out DIR]: results.csv as one figure, a row for each statistic, a column for each screen."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .arms import SCREENS

HERE = Path(__file__).parent
NAME = "checks.png"
TITLES = {"papalexi": "Papalexi: knock-out, three batches", "norman": "Norman cells: very sparse"}
# likelihood, mark, grey
MARKS = [("gaussian", "o", "white"), ("negative-binomial", "s", "black"), ("student-t", "D", "0.6")]
# metric, title, axis, value that a right model has where the held-out cells do not say it
STATISTICS: list[tuple[str, str, tuple[float, float], float | None]] = [
    ("zeros_error", "a gene's share of zeros:\nmean error", (0.0, 0.09), None),
    ("tail_above", "values above all of 1,000\nsimulated, times nominal", (0.0, 18.0), 1.0),
    ("kurtosis", "kurtosis of residuals,\nwell-seen genes", (2.0, 10.0), None),
    ("variance_error", "a gene's variance:\ntypical factor of error", (1.0, 1.6), None),
    ("library_slope", "share of genes seen:\nslope on log library", (0.0, 0.13), None),
    ("correlation_size", "correlations of leading\ngenes: root mean square", (0.04, 0.08), None),
    ("l2_ratio_to_own_mean", "pseudobulk: L2 / L2 of\ntraining cells' mean", (0.9, 1.02), 1.0),
    ("coverage_90", "pseudobulk:\n90 % interval covers", (0.82, 0.95), 0.9),
]


def draw(results: pd.DataFrame, path: Path) -> None:
    """A mark for each likelihood and seed; a line where held-out cells lie, a dotted one for training cells in their place."""
    figure, axes = plt.subplots(len(STATISTICS), 2, figsize=(9, 9.5), layout="constrained", sharex=False)
    for column, screen in enumerate(SCREENS):
        axes[0, column].set_title(TITLES[screen], fontsize=10, fontweight="bold", pad=8)
        for row, (metric, title, limits, nominal) in enumerate(STATISTICS):
            axis = axes[row, column]

            def values(name: str, what: str, metric: str = metric, screen: str = screen) -> pd.Series:
                rows = results[(results["arm"] == f"{screen}-{name}") & (results["what"] == what)]
                return rows.loc[rows["metric"] == metric, "value"]

            truth = values("gaussian", "held-out cells").mean() if nominal is None else nominal
            axis.axvline(truth, color="black", linewidth=1.4, label="held-out cells, or nominal")
            if len(training := values("gaussian", "training cells")):
                axis.axvline(training.mean(), color="0.4", linewidth=1.4, linestyle=":", label="training cells in their place")
            for lane, (name, mark, grey) in enumerate(MARKS):
                found = values(name, "model")
                axis.plot(found, [-lane] * len(found), mark, color=grey, markeredgecolor="black", markersize=7, label=name)
            axis.set(xlim=limits, ylim=(-2.7, 0.7), yticks=[])
            axis.tick_params(labelsize=8)
            if column == 0:
                axis.set_ylabel(title, rotation=0, ha="left", va="center", fontsize=9, labelpad=140)
            for side in ("left", "right", "top"):
                axis.spines[side].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.ppc.figure", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help=f"folder of results.csv and {NAME}")
    out = parser.parse_args().out
    draw(pd.read_csv(out / "results.csv"), out / NAME)


if __name__ == "__main__":
    main()
