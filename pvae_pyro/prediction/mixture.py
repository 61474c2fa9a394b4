"""Recipes of several fits as one: the draws of all of them, each joint over conditions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .globals import GlobalDraw
from .recipe import Recipe, in_blocks


@dataclass(frozen=True, eq=False)
class RecipeMixture:
    """What a `Recipe` is to one fit, this is to an ensemble: draws of the first part come first, then those of the next.

    The parts are asked for the same conditions in the same order; latents of one have nothing to do with latents of another.
    """

    parts: tuple[Recipe, ...]

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.parts[0].conditions

    @property
    def design(self) -> Tensor:
        return self.parts[0].design

    @property
    def trained(self) -> NDArray[np.int64]:
        return self.parts[0].trained

    @property
    def n_cells(self) -> NDArray[np.int64]:
        return self.parts[0].n_cells

    @property
    def own_batches(self) -> Tensor:
        return self.parts[0].own_batches

    @property
    def draws(self) -> list[GlobalDraw]:
        return [draw for part in self.parts for draw in part.draws]

    def asking(self, **rows: Any) -> RecipeMixture:
        """The same draws for other conditions; see `Recipe.asking`."""
        return RecipeMixture(tuple(part.asking(**rows) for part in self.parts))

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """As `Recipe.blocks`."""
        return in_blocks(self.block, len(self.conditions), len(self.draws), len(self.parts[0].guide.story.spread))

    def block(self, chosen: slice) -> tuple[Tensor, Tensor]:
        """As `Recipe.block`."""
        latent, measured = zip(*(part.block(chosen) for part in self.parts), strict=True)
        return torch.cat(latent), torch.cat(measured)

    def cell_moments(self, row: int) -> tuple[Tensor, Tensor]:
        """As `Recipe.cell_moments`."""
        mean, variance = zip(*(part.cell_moments(row) for part in self.parts), strict=True)
        return torch.cat(mean), torch.cat(variance)

    def cells(self, row: int, draw_numbers: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """As `Recipe.cells`."""
        ends = np.cumsum([len(part.draws) for part in self.parts])
        which = np.searchsorted(ends, draw_numbers, side="right")
        out = torch.empty(len(draw_numbers), len(self.parts[0].guide.story.spread))
        for number in np.unique(which):
            part, rows = self.parts[number], np.flatnonzero(which == number)
            own = draw_numbers[rows] - (ends[number] - len(part.draws))
            out[torch.as_tensor(rows)] = part.cells(row, own, generator)
        return out
