"""Loadings that are zero outside of given gene sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class GeneSets:
    """One responsive latent for each set, in their order: W_kg = 0 unless gene g is in set k.

    `sets`: a mapping from name to genes, or pairs of the two. Genes that a screen does not have are passed over.
    Source: the masked layer of SENA (ICLR 2025), there on the encoder's side.
    """

    sets: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        given: Any = self.sets
        pairs = given.items() if isinstance(given, Mapping) else given  # lists, as JSON gives them, are meant the same
        sets = tuple((str(name), tuple(str(gene) for gene in genes)) for name, genes in pairs)
        object.__setattr__(self, "sets", sets)
        if not sets:
            raise InputError("there is no gene set to keep loadings to; give at least one, name and genes.")

    def outside(self, genes: Sequence[str]) -> Tensor:
        """True where a gene is not in a set, (sets, genes). Raises InputError for a set without any of these genes."""
        place = {gene: column for column, gene in enumerate(genes)}
        out = torch.ones(len(self.sets), len(genes), dtype=torch.bool)
        for row, (name, members) in enumerate(self.sets):
            found = [place[gene] for gene in members if gene in place]
            if not found:
                raise InputError(
                    f"no gene of the set {name!r} has a count in the training cells; leave the set out or correct its genes."
                )
            out[row, found] = False
        return out
