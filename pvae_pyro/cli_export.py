"""The parts of the command `export`: what is asked for, and the netCDF file it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from xarray import DataTree

    from pvae_pyro.runs import Run


def number_of_genes(text: str) -> int | None:
    """A number, or None for "all"; InputError for anything else."""
    if text == "all":
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise InputError(f"--genes is {text!r}; give a number of 1 or more, or all.")
    return int(text)


def held_out_cells(run: Run) -> dict[str, int]:
    """Numbers of cells of the conditions that a run held out, by name; nothing where it was trained on all of its data."""
    if not (run.folder / "held_out.txt").exists():
        return {}
    truth = run.held_out()
    return dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))


def write_netcdf(tree: DataTree, path: Path, run: Run) -> None:
    """Write all groups; where the cells come from ("simulated", say) goes to the attributes of the root, `data_note`."""
    tree.attrs |= {"run": run.folder.name, "data": run.facts["data"], "data_note": run.facts["note"]}
    tree.to_netcdf(path, engine="h5netcdf")
