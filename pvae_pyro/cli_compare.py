"""The parts of the command `compare`: names of runs, the conditions that none of them saw, and the folder it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pvae_pyro import outputs
from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from pvae_pyro.evaluation.compare import Comparison
    from pvae_pyro.runs import Run
    from pvae_pyro.screen import ConditionSummary

KIND = "pvae_pyro comparison"
MARKER = "comparison.json"


def run_names(runs: Sequence[Path]) -> list[str]:
    """Folder names, with as much of the path before them as tells them apart; a run named twice is numbered."""
    # without following links, which may stand for the names that the user knows
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    names = []
    for place, own in enumerate(parts):
        others = [other for other in parts if other != own]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        name = "/".join(own[-depth:])
        before = parts[:place].count(own)
        names.append(f"{name} ({before + 1})" if before else name)
    return names


def shared_held_out(runs: Sequence[Run], names: Sequence[str]) -> ConditionSummary:
    """Measured summaries of the conditions that every run held out, as the first run keeps them.

    Raises InputError where a run held out nothing, no condition is common to all, or two runs hold other
    cells of the same condition.
    """
    summaries = [run.held_out() for run in runs]
    first = summaries[0]
    shared = [name for name in first.conditions if all(name in one.conditions for one in summaries)]
    if not shared:
        counts = ", ".join(str(len(one.conditions)) for one in summaries)
        raise InputError(
            f"no condition was held out by all of the {len(runs)} runs (they held out {counts}); give cells to "
            "score on with --test."
        )
    for name, other in zip(names[1:], summaries[1:], strict=True):
        if differing := _other_cells(first, other, shared):
            raise InputError(
                f"{names[0]!r} and {name!r} hold different cells of {differing[0]!r}; compare runs of the same "
                "data, or give cells to score on with --test."
            )
    return first.restrict(shared)


def write_comparison(
    comparison: Comparison,
    folder: Path,
    names: Sequence[str],
    test: Path | None,
    draws: int,
    seed: int,
    note: str,
) -> None:
    """Write comparison.md, comparison.csv, metrics.csv (the scores of every condition) and comparison.png.

    folder must not be there; note (such as "simulated data") goes into the title.
    """
    from pvae_pyro.report.comparison_plot import comparison_figure
    from pvae_pyro.report.plots import save

    count = comparison.scores.rows["condition"].nunique()
    source = "that none of the runs was trained on" if test is None else f"of {test.name}"
    facts = [
        f"Runs: {', '.join(names)}; the reference is {comparison.reference}.",
        f"Scored: {count} conditions {source}.",
        f"Predictions: {draws} joint posterior draws of each run, seed {seed}, of pseudobulks of the measured "
        "numbers of cells.",
    ]
    text = [
        f"# Comparison of {len(names)} runs{f' ({note})' if note else ''}",
        comparison.to_markdown().strip(),
        "![paired differences](comparison.png)",
        "### What was compared",
        "\n".join(f"- {fact}" for fact in facts),
    ]
    folder.mkdir()
    (folder / "comparison.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    comparison.table.to_csv(folder / "comparison.csv", index=False)
    comparison.scores.rows.to_csv(folder / "metrics.csv", index=False)
    save(comparison_figure(comparison.table), folder / "comparison.png")
    outputs.write_marker(
        folder,
        MARKER,
        KIND,
        {"runs": list(names), "test": test.name if test else None, "draws": draws, "seed": seed},
    )


def _other_cells(one: ConditionSummary, other: ConditionSummary, shared: Sequence[str]) -> list[str]:
    """Shared conditions of which two runs do not hold the same cells, judged by number and by shared genes."""
    _, columns, others = np.intersect1d(one.genes, other.genes, return_indices=True)
    found = []
    for name in shared:
        row, place = one.index(name), other.index(name)
        same = one.n_cells[row] == other.n_cells[place] and np.allclose(
            one.mean[row, columns], other.mean[place, others], rtol=1e-6, atol=1e-9
        )
        if not same:
            found.append(name)
    return found
