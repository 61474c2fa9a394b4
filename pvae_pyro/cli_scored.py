"""Files that predictions are scored on, for the command line: their cells, and what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from pvae_pyro.inference import Fit
    from pvae_pyro.runs import Run
    from pvae_pyro.screen import Screen
    from pvae_pyro.summary import ConditionSummary


def note_of(path: Path) -> str:
    """What a readable h5ad says of itself in uns["note"], up to a colon: simulated data is called so."""
    import h5py

    with h5py.File(path, "r") as file:
        note = file.get("uns/note")
        text = note[()] if isinstance(note, h5py.Dataset) and note.shape == () else ""
    return (text.decode(errors="replace") if isinstance(text, bytes) else str(text)).partition(":")[0].strip()


def read_test(path: Path, run: Run, fit: Fit) -> ConditionSummary:
    """Measured summaries of a test file's perturbed conditions, read as the data of the run were."""
    return read_cells(path, run, fit).summary()


def read_cells(path: Path, run: Run, fit: Fit) -> Screen:
    """Cells of a test file's perturbed conditions, read as the data of the run were."""
    from pvae_pyro.labels import CONTROL, parse_request
    from pvae_pyro.screen import Screen

    asked: dict[str, Any] = {key: run.settings[key] for key in ("control_label", "separator", "layer")}
    screen = Screen.from_anndata(path, run.settings["perturbation_key"], **asked, require_control=False)
    if screen.scale != fit.scale:
        raise InputError(
            f"{path.name} holds {screen.scale} but the run was fitted to {fit.scale}; give a test file on the "
            "same scale."
        )
    perturbed = [name for name in screen.conditions if name != CONTROL]
    if not perturbed:
        raise InputError(f"{path.name} holds no perturbed cells; give a test file with some to score on.")
    parse_request(perturbed, fit.known_targets)
    for notice in screen.notices:
        typer.echo(notice)
    return screen.restrict(perturbed).select_genes([str(gene) for gene in fit.genes])
