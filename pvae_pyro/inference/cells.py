"""Training cells as minibatches: sparse in memory, dense only for the cells of one step."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..screen import CONTROL, Screen
from ..story import Cells

log = logging.getLogger("pvae_pyro")
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
    """Equal numbers of cells of random conditions, and of controls: what an unbiased alignment penalty needs.

    Controls are one sample for all conditions, or with `paired` one of its own for every perturbed cell, or with `matched` one of
    its own from that cell's batch, no control twice in a condition. A batch with fewer controls than a condition gives
    cells cannot promise that: its cells meet controls of all batches. With one batch `matched` changes nothing.
    """

    def __init__(
        self,
        store: CellStore,
        conditions: int = 24,
        cells: int = 8,
        controls: int = 128,
        paired: bool = False,
        matched: bool = False,
    ) -> None:
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
        self.paired = paired
        self.batch = store.screen.batch[store.rows]
        self.pools = self._pools(store.screen.batches) if matched else []

    def _pools(self, batches: tuple[str, ...]) -> list[Index]:
        """Controls of each batch, all of them where it has too few; no list where there is nothing to match."""
        if len(batches) < 2 or not self.perturbed or len(self.control) < self.n_cells:
            log.warning("Matched controls were asked for, but there is nothing to match by: they are drawn from all controls.")
            return []
        pools = [self.control[self.batch[self.control] == b] for b in range(len(batches))]
        used = np.unique(self.batch[np.concatenate(self.perturbed)])
        few = [batches[b] for b in used if len(pools[b]) < self.n_cells]
        if few:
            log.warning("%d of %d batches have fewer than %d controls (such as %r): their cells are matched with controls of all "
                        "batches.", len(few), len(used), self.n_cells, few[0])  # fmt: skip
        return [pool if len(pool) >= self.n_cells else self.control for pool in pools]

    def draw(self, generator: np.random.Generator) -> tuple[Index, Index] | None:
        """Rows of perturbed cells (conditions, cells) and of controls, (controls,) or (conditions, cells) where each has its own.

        None if no condition has two cells or there are not two controls.
        """
        if not self.perturbed or self.n_controls < 2:
            return None
        chosen = generator.choice(len(self.perturbed), self.n_conditions, replace=False)
        rows = np.stack([generator.choice(self.perturbed[i], self.n_cells, replace=False) for i in chosen])
        if self.pools:
            return rows, self._partners(rows, generator)
        if self.paired:
            return rows, generator.choice(self.control, rows.shape)
        return rows, generator.choice(self.control, self.n_controls, replace=False)

    def _partners(self, rows: Index, generator: np.random.Generator) -> Index:
        """A control for each of these cells (conditions, cells), from the pool of its batch, none twice in a condition."""
        size = np.array([len(pool) for pool in self.pools])
        first, pooled = np.cumsum(size) - size, np.concatenate(self.pools)
        out, batch = np.full_like(rows, -1), self.batch[rows]
        for i in range(rows.shape[1]):
            again = np.arange(len(rows))
            while len(again):  # drawing anew until a control is new: the same law as drawing from those that are left
                b = batch[again, i]
                out[again, i] = pooled[first[b] + generator.integers(size[b])]
                again = again[(out[again, :i] == out[again, i : i + 1]).any(axis=1)]
        return out


def background_means(guide: torch.nn.Module, store: CellStore, rows: Index) -> Tensor:
    """Means of q(z_b | x) for rows of any shape, shape (*rows, background)."""
    loc, _ = guide.background(store.take(rows.reshape(-1)))  # type: ignore[operator]
    return loc.reshape(*rows.shape, -1)
