"""Held-out cells, cells simulated for the same conditions and library sizes, and their moments under common weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

import pvae_pyro as pv
from pvae_pyro.screen import CONTROL

Array = NDArray[np.float64]
ENOUGH = 1000  # held-out cells: control and the largest conditions, until there are as many


@dataclass(frozen=True, eq=False)
class Stratum:
    """Cells of one condition whose library sizes are alike (a third of all held-out cells)."""

    condition: str
    third: int
    library: Array  # of the held-out cells
    held_out: Array  # (cells, genes) log expression
    trained: Array  # training cells of the same condition and third
    trained_library: Array


def cut(screen: pv.Screen, seed: int) -> tuple[pv.Screen, pv.Screen]:
    """A fifth of the cells of every condition held out."""
    generator = np.random.default_rng(seed)
    held = np.zeros(screen.n_cells, dtype=bool)
    for i in range(len(screen.conditions)):
        members = np.flatnonzero(screen.condition == i)
        held[generator.choice(members, len(members) // 5, replace=False)] = True
    return screen.cells(np.flatnonzero(~held)), screen.cells(np.flatnonzero(held))


def large_conditions(test: pv.Screen) -> list[str]:
    """Control, then the conditions with most held-out cells, until these are enough."""
    table = test.condition_table().sort_values("n_cells", ascending=False, kind="stable")
    names = [CONTROL, *(c for c in table["condition"] if c != CONTROL)]
    size = dict(zip(table["condition"], table["n_cells"], strict=True))
    total = np.cumsum([size[name] for name in names])
    return names[: int(np.searchsorted(total, ENOUGH)) + 1]


def strata(train: pv.Screen, test: pv.Screen, conditions: list[str], genes: NDArray[np.bool_]) -> list[Stratum]:
    """Every condition in thirds of library size; thirds without a held-out cell are left out."""
    chosen = np.isin(test.condition, [test.conditions.index(c) for c in conditions])
    edges = np.quantile(test.library[chosen], [1 / 3, 2 / 3])
    out = []
    for name in conditions:
        for third in range(3):
            rows = [
                np.flatnonzero((s.condition == s.conditions.index(name)) & (np.searchsorted(edges, s.library) == third))
                for s in (test, train)
            ]
            if len(rows[0]) and len(rows[1]):
                x = [s.expression[r].toarray()[:, genes].astype(float) for s, r in zip((test, train), rows, strict=True)]
                out.append(Stratum(name, third, test.library[rows[0]], x[0], x[1], train.library[rows[1]]))
    return out


def simulated(fit: pv.Fit, parts: list[Stratum], n: int, draws: int, seed: int) -> Iterator[Array]:
    """`n` new cells for every stratum, with library sizes drawn from its held-out cells, (n, active genes)."""
    names = list(dict.fromkeys(s.condition for s in parts))
    posterior = fit.predict(names, draws=draws, seed=seed)
    numbers = np.repeat(np.arange(draws), -(-n // draws))[:n]
    for place, stratum in enumerate(parts):
        recipe = replace(posterior.recipe, library=torch.as_tensor(stratum.library, dtype=torch.float32))
        generator = torch.Generator().manual_seed(1000 * seed + place)
        with torch.no_grad():
            yield recipe.cells(names.index(stratum.condition), numbers, generator).double().numpy()


def seen(x: Array, library: Array) -> NDArray[np.bool_]:
    """Is there a count? A continuous likelihood has no zeros: what rounds to no count in the largest library counts as none."""
    return x > np.log1p(0.5e4 / library.max())
