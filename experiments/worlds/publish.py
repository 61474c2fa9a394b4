"""python -m experiments.worlds.publish: the tables of README.md from results.csv, a world each."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..filling import fill, markdown
from .arms import MODEL, RULES, START, WORLDS, seeds_of

HERE = Path(__file__).parent


def table(results: pd.DataFrame, world: str) -> str:
    """Methods by seed: L2, marked where it differs from the model's beyond noise; then means over seeds."""
    values = results[results["arm"] == world].set_index(["what", "metric", "seed"])["value"].sort_index()
    rows = []
    for method in (MODEL, START, *RULES):
        shown = []
        for seed in seeds_of(world):
            mark = ""
            if method != MODEL:
                low, high = (values[f"{method} - {MODEL}", f"l2_{end}", seed] for end in ("low", "high"))
                mark = " (+)" if low > 0 else " (-)" if high < 0 else ""
            shown.append(f"{values[method, 'l2', seed]:.2f}{mark}")
        drawn = (method, "coverage_90") in values.index  # of a point CRPS is another thing
        means = [f"{values[method, m].mean():.{digits}f}" if drawn else "-" for m, digits in (("crps", 4), ("coverage_90", 3))]
        rows.append([method, *shown, *means])
    return markdown([f"`{world}`", *(f"L2, seed {s}" for s in seeds_of(world)), "CRPS", "90 % covers"], rows)


if __name__ == "__main__":
    results = pd.read_csv(HERE / "results.csv")
    fill(HERE / "README.md", "worlds", {world: table(results, world) for world in WORLDS})
