"""`make demo`: the whole path by the commands a user would type, on simulated cells or on a user's file."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from pvae_pyro import outputs
from pvae_pyro.cli import command
from pvae_pyro.errors import InputError

_SHARE = 0.2  # of every condition's cells, held out where the file has no combination to hold out


@command()
def main(
    data: Annotated[Path | None, typer.Option(help="An h5ad file (default: simulated cells).")] = None,
    key: Annotated[str | None, typer.Option(help="Its obs column that says what was perturbed.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
) -> None:
    """Fit singles, predict held-out combinations, score them and say where the report is."""
    if (data is None) != (key is None):
        raise InputError("a file and its column go together; use `make demo DATA=file.h5ad KEY=column`.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, but the demo makes a folder of that name; move the file away.")
    out.mkdir(parents=True, exist_ok=True)
    options = ["--train", "singles"]
    if data is None or key is None:
        data, key = out / "screen.h5ad", "condition"
        _run("simulate", "--out", data, "--overwrite")
        options += ["--batch-key", "batch"]
    run = out / "run"
    test: list[str | Path] = []
    if not _has_combinations(data, key):
        data, held_out = _hold_out_cells(data, key, out)
        typer.echo(
            f"The file has no combination: {_SHARE:.0%} of every condition's cells are held out instead."
        )
        test = ["--test", held_out]
    _run("fit", data, "--perturbation-key", key, *options, "--out", run, "--overwrite")
    asked: list[str | Path] = ["--all-pairs"] if test else ["--conditions-file", run / "held_out.txt"]
    _run("predict", run, *asked, "--out", out / "predictions.h5ad", "--overwrite")
    _run("evaluate", run, *test, "--out", out / "report", "--overwrite")


def _run(*arguments: str | Path) -> None:
    """Show a command and run it; its failure, already explained, ends the demo with its status."""
    words = [str(word) for word in arguments]
    typer.echo(f"\n$ pvae-pyro {shlex.join(words)}")
    status = subprocess.run([sys.executable, "-m", "pvae_pyro.cli", *words], check=False).returncode
    if status:
        raise typer.Exit(status)


def _has_combinations(data: Path, key: str) -> bool:
    from pvae_pyro.screen import Screen

    return bool((Screen.from_anndata(data, key).design != 0).sum(axis=1).max() > 1)


def _hold_out_cells(data: Path, key: str, out: Path) -> tuple[Path, Path]:
    """Two files, to train on and to test on; the draw is the same in every run."""
    import anndata
    import numpy as np

    cells = anndata.read_h5ad(data)
    tested = np.zeros(cells.n_obs, dtype=bool)
    for places in cells.obs.groupby(key, observed=True).indices.values():
        share = int(_SHARE * len(places))
        tested[np.random.default_rng(0).permutation(places)[:share]] = True
    paths = out / "train.h5ad", out / "test.h5ad"
    with outputs.staged(*paths) as parts:
        for part, chosen in zip(parts, (~tested, tested), strict=True):
            cells[chosen].write_h5ad(part)
    return paths


if __name__ == "__main__":
    typer.run(main)
