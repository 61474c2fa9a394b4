"""Training cells as minibatches: sparse in memory, dense only for the cells of one step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..screen import CONTROL, Screen
from ..story import Cells

Index = NDArray[np.int64]


class CellStore:
    """Some cells (`rows`) of one screen on one device; `observes` is what the likelihood wants to see."""

    def __init__(self, screen: Screen, rows: Index, observes: str, device: torch.device) -> None:
        self.screen, self.rows, self.device = screen, rows, device
        self.observed = screen.counts if observes == "counts" else None
        self.condition = torch.as_tensor(screen.condition[rows], device=device)
        self.batch = torch.as_tensor(screen.batch[rows], device=device)
        self.library = torch.as_tensor(screen.library[rows], dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Index) -> Cells:
        """The cells at these rows, dense."""
        rows = torch.as_tensor(index, device=self.device)
        x = torch.from_numpy(self.screen.expression[self.rows[index]].toarray()).to(self.device)
        observed = (
            x
            if self.observed is None
            else torch.from_numpy(self.observed[self.rows[index]].toarray()).to(self.device)
        )
        return Cells(x, observed, self.condition[rows], self.batch[rows], self.library[rows])

    def epoch(self, batch_size: int, generator: np.random.Generator) -> Iterator[Index]:
        """Rows of one pass in random order; the last, smaller batch is kept."""
        order = generator.permutation(len(self))
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


class BalancedSampler:
    """Equal numbers of cells of random conditions, and of controls: what an unbiased alignment penalty needs."""

    def __init__(self, store: CellStore, conditions: int = 24, cells: int = 8, controls: int = 128) -> None:
        code, names = store.screen.condition[store.rows], store.screen.conditions
        members = [np.flatnonzero(code == i) for i in range(len(names))]
        control = names.index(CONTROL)
        self.control = members[control]
        self.perturbed = [m for i, m in enumerate(members) if i != control and len(m) >= 2]
        self.n_cells = min([cells, *(len(m) for m in self.perturbed)])
        self.n_conditions, self.n_controls = (
            min(conditions, len(self.perturbed)),
            min(controls, len(self.control)),
        )

    def draw(self, generator: np.random.Generator) -> tuple[Index, Index] | None:
        """Rows (conditions, cells) of perturbed cells and rows of controls; None if no condition has two cells."""
        if not self.perturbed or self.n_controls < 2:
            return None
        chosen = generator.choice(len(self.perturbed), self.n_conditions, replace=False)
        rows = [generator.choice(self.perturbed[i], self.n_cells, replace=False) for i in chosen]
        return np.stack(rows), generator.choice(self.control, self.n_controls, replace=False)


def background_means(guide: torch.nn.Module, store: CellStore, rows: Index) -> Tensor:
    """Means of q(z_b | x) for rows of any shape, shape (*rows, background)."""
    loc, _ = guide.background(store.take(rows.reshape(-1)))  # type: ignore[operator]
    return loc.reshape(*rows.shape, -1)
