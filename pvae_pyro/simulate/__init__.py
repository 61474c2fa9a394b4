"""Simulated screens with known truth: the embedded demo data and the worlds that recovery tests need.

>>> screen = simulate("linear-gaussian", seed=1, doubles=5, controls=50, cells_per_condition=10)
>>> screen.adata.shape, screen.truth.conditions[:3]
((500, 200), ('control', 'T01', 'T02'))
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pvae_pyro.errors import InputError
from pvae_pyro.simulate.truth import CellTruth, Truth, draw_truth, stream
from pvae_pyro.simulate.worlds import PRESETS, World, world

__all__ = ["PRESETS", "CellTruth", "SimulatedScreen", "Truth", "World", "simulate"]

_NOTE = (
    "Simulated cells of pvae_pyro, not measurements: pvae_pyro.simulate.simulate(**json.loads(settings)) "
    "makes them again, with their truth."
)


@dataclass(frozen=True, eq=False)
class SimulatedScreen:
    """A screen and what is true in it.

    `adata`: X (cells, genes) is raw counts in CSR, or dense positive expression in Gaussian worlds, float32;
    `obs["condition"]` is 'control', 'A' or 'A+B', `obs["batch"]` the batch. The truth is not in the AnnData;
    `uns["settings"]` (JSON) is what makes it again.
    """

    adata: AnnData
    truth: Truth
    world: World

    def write(self, path: str | Path) -> Path:
        """Write the AnnData as compressed h5ad, replacing an old file whole or not at all; return the path.

        Raises:
            InputError: the path is a folder, or lies in one that does not exist.
        """
        path = Path(path)
        if path.is_dir():
            raise InputError(
                f"The simulated screen cannot be written to {path}: it is a folder; name a file in it."
            )
        if not path.parent.is_dir():
            raise InputError(
                f"The simulated screen cannot be written to {path}: no folder {path.parent}; make it first."
            )
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.adata.write_h5ad(partial, compression="gzip")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def simulate(preset: str = "default", seed: int = 0, **overrides: Any) -> SimulatedScreen:
    """Simulate a perturbation screen; the same arguments give the same cells, bit for bit.

    `preset` is a key of PRESETS, `overrides` are fields of World. Every part of the story has a random stream
    of its own: with the same seed, other numbers of cells or another graph leave the effects as they were.

    Raises:
        InputError: unknown preset, negative seed or a value out of range.
        TypeError: a field that World does not have.
    """
    if seed < 0:
        raise InputError(f"The seed of a simulation must not be negative, found {seed}; use 0 or more.")
    settings = world(preset, **overrides)
    truth = draw_truth(settings, seed)
    width = len(str(settings.batches))  # equal width, so that sorted names are in the order of the codes
    adata = AnnData(
        X=_expression(truth, stream(seed, "expression")),
        obs=pd.DataFrame(
            {
                "condition": pd.Categorical(np.array(truth.conditions)[truth.cells.condition]),
                "batch": pd.Categorical([f"batch{code + 1:0{width}d}" for code in truth.cells.batch]),
            },
            index=[f"cell{number:06d}" for number in range(1, len(truth.cells.condition) + 1)],
        ),
        var=pd.DataFrame(index=list(truth.genes)),
    )
    adata.uns["note"] = _NOTE
    recipe = {"preset": preset, "seed": seed} | dataclasses.asdict(settings)
    adata.uns["settings"] = json.dumps(recipe, default=lambda value: value.item())  # numpy scalars
    return SimulatedScreen(adata=adata, truth=truth, world=settings)


def _expression(truth: Truth, rng: np.random.Generator) -> Any:
    """(cells, genes) float32: CSR counts from a gamma-Poisson mixture, or dense Gaussian expression."""
    cells = truth.cells
    output = truth.decode(cells.z_background, cells.z_responsive, cells.batch)
    if truth.noise_sd is not None:
        return (output + rng.normal(size=output.shape) * truth.noise_sd).astype(np.float32)
    assert truth.dispersion is not None
    mean = cells.depth[:, None] * np.exp(output)
    shape = 1.0 / truth.dispersion
    counts = rng.poisson(rng.gamma(shape, size=mean.shape) * mean / shape)
    return sparse.csr_matrix(counts.astype(np.float32))
