"""Condition means, variances and half means of a screen: all that closed forms, baselines and scores need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from pvae_pyro.errors import InputError
from pvae_pyro.labels import canonical_name, near
from pvae_pyro.reading import strings

if TYPE_CHECKING:
    from pvae_pyro.screen import Screen


@dataclass(frozen=True, eq=False)
class ConditionSummary:
    """Moments of the log expression of each condition's cells; C conditions, T targets, G genes.

    design:   (C, T) float32 doses; n_cells: (C,) int64
    mean:     (C, G) float64; variance: (C, G) float64, unbiased, 0 where there is one cell
    halves:   (2, C, G) float64, means of two random disjoint halves of the cells, nan where there is one cell
    """

    conditions: tuple[str, ...]
    targets: tuple[str, ...]
    design: np.ndarray
    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    halves: np.ndarray
    genes: np.ndarray

    def index(self, condition: str) -> int:
        """Row of a condition, its targets named in any order; InputError if it has none."""
        return find_conditions([condition], self.conditions)[0]

    def restrict(self, conditions: Sequence[str]) -> ConditionSummary:
        """These conditions in the order asked, with the targets that occur in them."""
        rows = np.array(find_conditions(conditions, self.conditions), dtype=np.int64)
        design = self.design[rows]
        kept = np.flatnonzero((design != 0).any(axis=0))
        return ConditionSummary(
            conditions=tuple(self.conditions[row] for row in rows),
            targets=tuple(self.targets[column] for column in kept),
            design=np.ascontiguousarray(design[:, kept]),
            n_cells=self.n_cells[rows],
            mean=self.mean[rows],
            variance=self.variance[rows],
            halves=self.halves[:, rows],
            genes=self.genes,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays that `numpy.savez` writes without pickle."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: strings(value) if isinstance(value, tuple) else value for name, value in held.items()}

    @classmethod
    def from_arrays(cls, mapping: Mapping[str, np.ndarray]) -> ConditionSummary:
        """The inverse of `arrays`; InputError when an array is missing."""
        names = [field.name for field in fields(cls)]
        if absent := [name for name in names if name not in mapping]:
            raise InputError(
                f"a stored condition summary lacks {', '.join(absent)}; it was not written by pvae_pyro."
            )
        values = {name: np.asarray(mapping[name]) for name in names}
        texts = {name: tuple(str(one) for one in values.pop(name)) for name in ("conditions", "targets")}
        return cls(**texts, **values)  # type: ignore[arg-type]


def find_conditions(asked: Sequence[str], conditions: Sequence[str]) -> list[int]:
    """Places of conditions in `conditions` (canonical names); InputError for the first that is not there."""
    places = {name: place for place, name in enumerate(conditions)}
    found = []
    for name in asked:
        place = places.get(name)
        if place is None:
            place = places.get(canonical_name(name))
        if place is None:
            raise InputError(
                f"the condition {name!r} has no cells here ({near(name, conditions)}); correct the name."
            )
        found.append(place)
    return found


def condition_generator(condition: str, seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of one condition, whatever else is in the screen."""
    digest = hashlib.sha256(f"{purpose}|{seed}|{condition}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def cells_by_condition(screen: Screen) -> list[np.ndarray]:
    """Indices of each condition's cells, ascending."""
    order = np.argsort(screen.condition, kind="stable")
    ends = np.cumsum(np.bincount(screen.condition, minlength=len(screen.conditions)))
    return [order[start:end] for start, end in pairwise([0, *ends])]


def summarise(screen: Screen, seed: int) -> ConditionSummary:
    """Moments of every condition, one at a time, so that none depends on another."""
    shape = (len(screen.conditions), screen.n_genes)
    mean, variance, halves = np.zeros(shape), np.zeros(shape), np.full((2, *shape), np.nan)
    members = cells_by_condition(screen)
    for row, (name, own) in enumerate(zip(screen.conditions, members, strict=True)):
        n = len(own)
        cells = screen.expression[own]
        values = cells.data.astype(np.float64)
        mean[row] = np.bincount(cells.indices, weights=values, minlength=shape[1]) / n
        if n < 2:
            continue
        # Deviations first, squares second: no cancellation; a zero deviates by the mean.
        squares = np.bincount(
            cells.indices, weights=(values - mean[row, cells.indices]) ** 2, minlength=shape[1]
        )
        zeros = n - np.bincount(cells.indices, minlength=shape[1])
        variance[row] = (squares + zeros * mean[row] ** 2) / (n - 1)
        in_first = np.zeros(n, dtype=bool)
        in_first[condition_generator(name, seed, "halves").permutation(n)[: n // 2]] = True
        per_value = np.repeat(in_first, np.diff(cells.indptr))
        for half, (which, size) in enumerate(((per_value, n // 2), (~per_value, n - n // 2))):
            halves[half, row] = (
                np.bincount(cells.indices[which], weights=values[which], minlength=shape[1]) / size
            )
    n_cells = np.array([len(own) for own in members], dtype=np.int64)
    return ConditionSummary(
        screen.conditions, screen.targets, screen.design, n_cells, mean, variance, halves, screen.genes
    )


def gene_variance(expression: sp.csr_matrix) -> np.ndarray:
    """Variance of each gene over cells, by deviations from the mean; (genes,) float64."""
    n, genes = expression.shape
    blocks = [slice(start, start + (1 << 22)) for start in range(0, expression.nnz, 1 << 22)]
    total, squares, stored = np.zeros(genes), np.zeros(genes), np.zeros(genes)
    for block in blocks:
        total += np.bincount(expression.indices[block], weights=expression.data[block], minlength=genes)
        stored += np.bincount(expression.indices[block], minlength=genes)
    mean = total / max(n, 1)
    for block in blocks:
        deviation = expression.data[block] - mean[expression.indices[block]]
        squares += np.bincount(expression.indices[block], weights=deviation**2, minlength=genes)
    return np.asarray((squares + (n - stored) * mean**2) / max(n, 1))
