"""python -m experiments.ppc.figure [--out DIR]: results.csv as one figure, a row for each statistic, a column for each screen."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .arms import LIKELIHOODS, SCREENS

HERE = Path(__file__).parent
NAME = "checks.png"
MARKS = dict(zip(LIKELIHOODS, "osD^", strict=False))
TITLES = {"papalexi": "Papalexi (knock-out, 3 batches)", "norman": "Norman cells (very sparse)"}
# metric, title, log scale?, value that a right model has where the held-out cells do not say it
STATISTICS: list[tuple[str, str, bool, float | None]] = [
    ("zeros_error", "error of a gene's share of zeros", False, None),
    ("variance_error", "factor by which a gene's variance errs", False, None),
    ("kurtosis", "kurtosis of residuals, well-seen genes", True, None),
    ("library_slope", "genes seen, slope on log library", False, None),
    ("correlation_size", "gene-gene correlations, root mean square", False, None),
    ("tail_above", "values above 1,000 simulated, x nominal", True, 1.0),
    ("tail_below_well_seen", "values below 1,000 simulated, x nominal", True, 1.0),
    ("l2_ratio_to_own_mean", "pseudobulk: L2 / L2 of own mean", False, 1.0),
    ("coverage_90", "pseudobulk: 90 % interval covers", False, 0.9),
]


def draw(results: pd.DataFrame, path: Path) -> None:
    """One dot for each likelihood; a line where held-out cells lie, a dotted one for training cells in their place."""
    figure, axes = plt.subplots(len(STATISTICS), 2, figsize=(8.5, 8.5), layout="constrained")
    for column, screen in enumerate(SCREENS):
        for row, (metric, title, log, nominal) in enumerate(STATISTICS):
            axis = axes[row, column]

            def value(arm: str, what: str, metric: str = metric) -> float:
                rows = results[(results["arm"] == arm) & (results["what"] == what) & (results["metric"] == metric)]
                return float(rows["value"].mean())

            arms = [f"{screen}-{name}" for name in LIKELIHOODS]
            truth = nominal if nominal is not None else value(arms[0], "held-out cells")
            axis.axvline(truth, color="black", linewidth=1.2)
            replicate = value(arms[0], "training cells")
            if pd.notna(replicate):
                axis.axvline(replicate, color="0.45", linewidth=1.2, linestyle=":")
            for arm, name in zip(arms, LIKELIHOODS, strict=True):
                found = value(arm, "model")
                axis.plot([found], [0], MARKS[name], color="white" if name == "gaussian" else "0.35", markeredgecolor="black",
                          markersize=7, label=name, linestyle="none", clip_on=False)  # fmt: skip
            if log:
                axis.set_xscale("log")
            axis.set_yticks([])
            axis.tick_params(labelsize=7)
            axis.set_title(title, fontsize=8, loc="left", pad=2)
            for side in ("left", "right", "top"):
                axis.spines[side].set_visible(False)
    for column, screen in enumerate(SCREENS):
        axes[-1, column].set_xlabel(TITLES[screen], fontsize=9, fontweight="bold")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="black"), plt.Line2D([], [], color="0.45", linestyle=":")]
    labels += ["held-out cells, or nominal", "training cells in their place"]
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.ppc.figure", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help=f"folder of results.csv and {NAME}")
    out = parser.parse_args().out
    draw(pd.read_csv(out / "results.csv"), out / NAME)


if __name__ == "__main__":
    main()
