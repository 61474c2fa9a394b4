"""python -m experiments.ppc.publish [--out DIR]: results.csv into the table of README.md, between its markers, and the figure."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..filling import fill
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
    figure, axes = plt.subplots(len(STATISTICS), 2, figsize=(9, 9.5), layout="constrained")
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
    plt.close(figure)


# metric, title, digits
COLUMNS = [
    ("zeros_error", "zeros, error", 3),
    ("genes_lacking_zeros", "genes lacking zeros", 3),
    ("tail_above", "above 1,000, x nominal", 1),
    ("kurtosis", "kurtosis", 1),
    ("library_slope", "library slope", 3),
    ("effects_q99", "size of effects, 99 % quantile / measured", 2),
    ("effects_q90", "90 % quantile", 2),
    ("cell_log_density", "log density of a cell", 1),
    ("l2_ratio_to_own_mean", "L2 / L2 of own mean", 3),
    ("crps", "CRPS", 4),
    ("coverage_90", "90 % covers", 3),
]


def table(results: pd.DataFrame, screen: str) -> str:
    """A row for each likelihood, the mean over seeds; what real cells look like at the end."""
    names = [*(name for name, *_ in MARKS), "student-t-all-genes"]
    rows = [(f"{screen}-{name}", "model", name.replace("-all-genes", ", same tails for all genes")) for name in names]
    rows += [(f"{screen}-gaussian", what, what) for what in ("training cells", "held-out cells")]
    lines = [f"| {screen} | {' | '.join(title for _, title, _ in COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for arm, what, shown in rows:
        mine = results[(results["arm"] == arm) & (results["what"] == what)].groupby("metric")["value"].mean()
        cells = (f"{mine[metric]:.{digits}f}" if metric in mine else "-" for metric, _, digits in COLUMNS)
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.ppc.publish", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help=f"folder of results.csv, README.md and {NAME}")
    out = parser.parse_args().out
    results, readme = pd.read_csv(out / "results.csv"), out / "README.md"
    draw(results, out / NAME)
    if readme.exists():
        fill(readme, "ppc", {screen: table(results, screen) for screen in SCREENS})


if __name__ == "__main__":
    main()
