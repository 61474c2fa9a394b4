"""A posterior as files: PRED.h5ad, D.npz and CELLS.h5ad of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from pvae_pyro.prediction import Posterior

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def write_predictions(posterior: Posterior, path: Path, origin: Mapping[str, Any]) -> None:
    """Write one row a condition: X the mean of the measured pseudobulk, layers its spread, float32.

    `sd`, `q05` ... `q95` include the noise of `n_cells` cells, `latent_mean` and `latent_sd` do not.
    """
    both = posterior.summaries(("measured_pseudobulk", "latent_mean"), quantiles_of=("measured_pseudobulk",))
    measured, latent = both["measured_pseudobulk"], both["latent_mean"]
    layers = {"sd": measured.sd, "latent_mean": latent.mean, "latent_sd": latent.sd}
    layers |= {f"q{round(100 * q):02d}": measured.quantile(q) for q in QUANTILES}
    table = AnnData(
        X=_float32(measured.mean),
        obs=pd.DataFrame(
            {
                "n_cells": np.asarray(posterior.n_cells, dtype=np.int64),
                "n_targets": np.asarray(posterior.n_targets, dtype=np.int64),
                "seen_targets": np.asarray(posterior.seen_targets, dtype=np.int64),
            },
            index=list(posterior.conditions),
        ),
        var=pd.DataFrame(index=[str(gene) for gene in posterior.genes]),
        layers={name: _float32(values) for name, values in layers.items()},
        uns={
            "scale": posterior.scale,
            "quantity": "predicted measured pseudobulk of n_cells cells",
            "pvae_pyro": dict(origin),
        },
    )
    table.write_h5ad(path, compression="gzip")


def write_draws(posterior: Posterior, path: Path) -> None:
    """Write the draws that the layers summarise: draws (S, conditions, genes) float32, conditions, genes."""
    with path.open("wb") as stream:  # given a name, numpy appends .npz to it
        np.savez_compressed(
            stream,
            draws=_float32(posterior.draws("measured_pseudobulk")),
            conditions=np.array(list(posterior.conditions), dtype=np.str_),
            genes=np.array([str(gene) for gene in posterior.genes], dtype=np.str_),
        )


def write_cells(posterior: Posterior, path: Path, origin: Mapping[str, Any]) -> None:
    """Write `n_cells` new cells of each condition, float32, with `obs["condition"]`."""
    seed = int(origin["seed"])
    sizes = [int(n) for n in posterior.n_cells]
    cells = [posterior.new_cells(name, n, seed) for name, n in zip(posterior.conditions, sizes, strict=True)]
    labels = np.repeat(np.array(list(posterior.conditions), dtype=object), sizes)
    numbers = np.concatenate([np.arange(1, n + 1) for n in sizes])
    table = AnnData(
        X=_float32(np.concatenate([np.asarray(block) for block in cells])),
        obs=pd.DataFrame(
            {"condition": pd.Categorical(labels)},
            index=[f"{name}:{number}" for name, number in zip(labels, numbers, strict=True)],
        ),
        var=pd.DataFrame(index=[str(gene) for gene in posterior.genes]),
        uns={"scale": posterior.scale, "quantity": "predicted new cells", "pvae_pyro": dict(origin)},
    )
    table.write_h5ad(path, compression="gzip")


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
