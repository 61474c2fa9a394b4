"""python -m experiments.identifiability.publish: results.csv into the tables of README.md and the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..filling import fill, markdown
from .arms import arms

HERE = Path(__file__).parent
FIGURE = "identified.png"
DEVELOPMENT = (0, 1)  # worlds that the optimiser was developed on
PUBLISHED = {
    "paper": {"mcc": 0.86, "r2_responsive": 0.95, "r2_background": 0.97},
    "paper-no-alignment": {"mcc": 0.81, "r2_responsive": 0.93, "r2_background": 0.66},
}
COLUMNS = {
    "mcc": "MCC", "mcc_floor": "its floor", "r2_responsive": "R2 responsive", "r2_background": "R2 background",
    "r2_responsive_kernel": "same, kernel", "r2_background_kernel": "same, kernel", "label_in_background": "label in background",
}  # fmt: skip


def values(results: pd.DataFrame, arm: str, metric: str) -> np.ndarray:
    """One value a seed, (seeds,)."""
    return results[(results["arm"] == arm) & (results["metric"] == metric)]["value"].to_numpy()


def table(results: pd.DataFrame) -> str:
    """Median and quartiles over seeds of every arm that was run, with what the paper gives."""
    lines = [f"| arm | seeds | {' | '.join(COLUMNS.values())} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for arm in arms():
        n = len(values(results, arm, "mcc"))
        if not n:
            continue
        cells = [_cell(values(results, arm, metric)) for metric in COLUMNS]
        lines.append(f"| {arm} | {n} | {' | '.join(cells)} |")
        if arm in PUBLISHED:
            known = [f"{PUBLISHED[arm][m]:.2f}" if m in PUBLISHED[arm] else "-" for m in COLUMNS]
            lines.append(f"| *published* | 5 | {' | '.join(known)} |")
    return "\n".join(lines)


def verdict(results: pd.DataFrame) -> str:
    """What was asked for beside what was reached: medians over all seeds, which decide, and over those of fresh worlds."""
    fresh = reached(results[~results["seed"].isin(DEVELOPMENT)])
    rows = []
    for (what, goal), ours in reached(results).items():
        rows.append([what, f">= {goal:.2f}", f"{ours:.3f}", "met" if ours >= goal else "not met", f"{fresh[what, goal]:.3f}"])
    return markdown(["median over seeds", "asked", "ours", "verdict", "fresh seeds only"], rows)


def reached(results: pd.DataFrame) -> dict[tuple[str, float], float]:
    """What is asked for, (name, goal), and the median over seeds beside it."""
    medians = {m: float(np.median(values(results, "paper", m))) for m in ("mcc", "mcc_floor", "r2_responsive", "r2_background")}
    out = {(f"{COLUMNS[m]}, as published", goal): medians[m] for m, goal in PUBLISHED["paper"].items()}
    out["MCC above its floor", 0.05] = medians["mcc"] - medians["mcc_floor"]
    without = values(results, "paper-no-alignment", "r2_background")
    if len(without):
        out["R2 background lost without alignment", 0.1] = medians["r2_background"] - float(np.median(without))
    return out | {("aim: MCC", 0.95): medians["mcc"]}


def draw(results: pd.DataFrame, path: Path) -> None:
    """A dot a seed, one row an arm; floor of the MCC grey, published values as diamonds."""
    names = [arm for arm in arms() if len(values(results, arm, "mcc")) and not arm.startswith("grid")]
    figure, axes = plt.subplots(1, 3, figsize=(8.5, 1.0 + 0.32 * len(names)), sharey=True, layout="constrained")
    for axis, metric in zip(axes, ("mcc", "r2_responsive", "r2_background"), strict=True):
        for row, arm in enumerate(names):
            found = values(results, arm, metric)
            axis.plot(found, np.full(len(found), row), "o", color="black", markersize=4, alpha=0.6)
            axis.plot([np.median(found)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1.5)
            if metric == "mcc":
                axis.plot(np.median(values(results, arm, "mcc_floor")), row, "|", color="0.5", markersize=14, markeredgewidth=3)
            if arm in PUBLISHED:
                axis.plot(PUBLISHED[arm][metric], row - 0.32, "D", color="white", markeredgecolor="black", markersize=5)
        axis.set(xlabel=COLUMNS[metric], xlim=(min(0.4, axis.get_xlim()[0]), 1.02))
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set_title("black: a seed, bar: median; grey: floor; diamond: published", fontsize=8, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tables(results: pd.DataFrame) -> dict[str, str]:
    """Every table by the name of its marker."""
    return {"verdict": verdict(results), "arms": table(results)}


def main() -> None:
    """Fill the README and draw the figure."""
    results = pd.read_csv(HERE / "results.csv")
    fill(HERE / "README.md", "identifiability", tables(results))
    draw(results, HERE / FIGURE)


def _cell(found: np.ndarray) -> str:
    if not len(found):
        return "-"
    if len(found) < 3:
        return f"{np.median(found):.3f}"
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
