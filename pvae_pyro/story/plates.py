"""The plates of the globals, made once per run of the program so that every part can enter the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import pyro


@dataclass(frozen=True)
class Plates:
    """Independence of targets and background rows (dim -2), and of latents, edges, genes and combinations (dim -1)."""

    targets: pyro.plate
    background: pyro.plate
    latents: pyro.plate
    genes: pyro.plate
    edges: pyro.plate | None

    @classmethod
    def make(cls, targets: int, background: int, latents: int, genes: int) -> Plates:
        """Plates of these sizes; edges are the pairs of latents."""
        n_edges = latents * (latents - 1) // 2
        return cls(
            pyro.plate("targets", targets, dim=-2),
            pyro.plate("background", background, dim=-2),
            pyro.plate("latents", latents, dim=-1),
            pyro.plate("genes", genes, dim=-1),
            pyro.plate("edges", n_edges, dim=-1) if n_edges else None,
        )
