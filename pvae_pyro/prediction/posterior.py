"""Posterior predictions of conditions: three targets kept apart by name, draws joint over conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..labels import listing, parse_request
from .mixture import RecipeMixture
from .recipe import Recipe, condition_seed

if TYPE_CHECKING:
    from xarray import DataTree

    from ..inference import Finding
    from ..summary import ConditionSummary

Array = NDArray[np.float32]
Kind = Literal["latent_mean", "measured_pseudobulk"]
Target = Literal["latent_mean", "measured_pseudobulk", "new_cell"]
TARGETS: tuple[Target, ...] = ("latent_mean", "measured_pseudobulk", "new_cell")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class Summary:
    """Mean and sd over draws, and quantiles by level, each (conditions, genes)."""

    mean: Array
    sd: Array
    quantiles: dict[float, Array]

    def quantile(self, level: float) -> Array:
        """One of the stored levels 0.05, 0.25, 0.5, 0.75, 0.95."""
        if level not in self.quantiles:
            raise InputError(
                f"quantile {level} is not stored; choose one of {', '.join(map(str, self.quantiles)) or 'none'}."
            )
        return self.quantiles[level]


@dataclass(frozen=True, eq=False)
class VarianceParts:
    """Where the width of a prediction comes from, each (conditions, genes), in squared units of expression.

    epistemic: variance over draws of the latent mean, what more training conditions would take away. aleatoric: the average
    over draws of the variance given the draw (of a cell, or of a mean of n cells), which no training takes away. By the law
    of total variance their sum is the variance of what is measured.
    """

    epistemic: Array
    aleatoric: Array

    @property
    def total(self) -> Array:
        return self.epistemic + self.aleatoric


@dataclass(frozen=True, eq=False)
class Contrast:
    """Draws of a difference between conditions on the scale of the latent mean, (draws, genes), with what it rests on."""

    name: str
    genes: NDArray[np.str_]
    draws: Array
    note: str

    @property
    def mean(self) -> Array:
        return np.asarray(self.draws.mean(axis=0))

    def interval(self, level: float = 0.9) -> tuple[Array, Array]:
        """Central interval of each gene, two arrays (genes,). Raises InputError unless 0 < level < 1."""
        if not 0 < level < 1:
            raise InputError(f"level is the share that an interval holds, between 0 and 1, but {level} was given.")
        tail = (1 - level) / 2
        low, high = np.quantile(self.draws, [tail, 1 - tail], axis=0)
        return low, high

    def probability_above(self, size: float) -> Array:
        """P(|difference| > size) for each gene, (genes,)."""
        return np.asarray((np.abs(self.draws) > size).mean(axis=0))

    def probability_positive(self, size: float = 0.0) -> Array:
        """P(difference > size) for each gene, (genes,): of an interaction, that the combination does more than its parts."""
        return np.asarray((self.draws > size).mean(axis=0))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Predictions of `conditions`, on the scale of the input's log expression (`scale`).

    latent mean: E[x | globals, condition] of a cell population without end. measured pseudobulk: mean of `n_cells` measured
    cells, finite-cell noise included. new cell: one more cell (`new_cells`). One joint draw of the globals serves every
    condition, so differences between conditions may be taken draw by draw. Nothing is kept between calls but the recipe:
    results are reduced block by block and repeat bit for bit.
    """

    recipe: Recipe | RecipeMixture
    genes: NDArray[np.str_]
    active: NDArray[np.bool_]
    scale: str
    n_targets: NDArray[np.int64]
    seen_targets: NDArray[np.int64]
    composition_is_additive: bool
    targets: tuple[str, ...]

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.recipe.conditions

    @property
    def n_cells(self) -> NDArray[np.int64]:
        return self.recipe.n_cells

    @property
    def n_draws(self) -> int:
        return len(self.recipe.draws)

    def draws(self, kind: Kind = "measured_pseudobulk") -> Array:
        """All draws at once, (draws, conditions, genes) float32: use `summary` where that does not fit in memory."""
        out = np.zeros((self.n_draws, len(self.conditions), len(self.genes)), dtype=np.float32)
        for chosen, block in self._blocks(kind):
            out[:, chosen][..., self.active] = block
        return out

    def summary(self, kind: Kind = "measured_pseudobulk") -> Summary:
        """Mean, sd and quantiles, reduced in a stream over conditions. Raises InputError for another kind, as `draws` does."""
        return self.summaries((kind,))[kind]

    def summaries(self, kinds: Sequence[Kind], quantiles_of: Sequence[Kind] | None = None) -> dict[Kind, Summary]:
        """Summaries of several kinds from the same draws in one pass.

        `quantiles_of`: kinds that get quantiles (default: all); they are as much work as all else.
        """
        for kind in kinds:
            _known(kind, TARGETS[:2])
        with_quantiles = kinds if quantiles_of is None else quantiles_of
        shape = (len(self.conditions), len(self.genes))
        out = {k: Summary(np.zeros(shape, np.float32), np.zeros(shape, np.float32),
                          {q: np.zeros(shape, np.float32) for q in QUANTILES if k in with_quantiles}) for k in kinds}  # fmt: skip
        for chosen, latent, measured in self.recipe.blocks():
            for kind in kinds:
                block = (latent if kind == "latent_mean" else measured).numpy()
                into = out[kind]
                rows = np.arange(chosen.start, chosen.stop)[:, None]
                columns = np.flatnonzero(self.active)[None]
                into.mean[rows, columns] = block.mean(0)
                into.sd[rows, columns] = block.std(0, ddof=1) if self.n_draws > 1 else 0.0
                levels = tuple(into.quantiles)
                for q, value in zip(levels, np.quantile(block, levels, axis=0) if levels else (), strict=True):
                    into.quantiles[q][rows, columns] = value
        return out

    def variance_parts(self, kind: Target = "measured_pseudobulk") -> VarianceParts:
        """Epistemic and aleatoric part of the variance of a latent mean, a measured pseudobulk or a new cell.

        Given a draw, a pseudobulk of n cells has the variance of a cell over n, a latent mean none. Raises InputError for another
        name. Source: evaluation.md 4.1 (law of total variance).
        """
        _known(kind, TARGETS)
        out = VarianceParts(*(np.zeros((len(self.conditions), len(self.genes)), np.float32) for _ in range(2)))
        for row, n in enumerate(self.n_cells.tolist()):
            mean, variance = self.recipe.cell_moments(row)
            cells = {"latent_mean": np.inf, "measured_pseudobulk": n, "new_cell": 1}[kind]
            out.epistemic[row, self.active] = mean.var(0).numpy() if self.n_draws > 1 else 0.0
            out.aleatoric[row, self.active] = (variance.mean(0) / cells).numpy()
        return out

    def diagnose(self) -> tuple[Finding, ...]:
        """How far the asked conditions are from what was trained, in words: levels fine, look, do not trust.

        The numbers behind it: `prediction.extrapolation.distances`. What the fit itself is worth: `Fit.diagnose`.
        """
        from .extrapolation import diagnose

        return diagnose(self)

    def _blocks(self, kind: Kind):  # type: ignore[no-untyped-def]
        _known(kind, TARGETS[:2])
        for chosen, latent, measured in self.recipe.blocks():
            yield chosen, (latent if kind == "latent_mean" else measured).numpy()

    def new_cells(self, condition: str, n: int, seed: int = 0) -> Array:
        """`n` new cells of one condition, (n, genes): globals, latents and measurement noise all drawn."""
        if n < 1:
            raise InputError(f"n must be at least 1 cell, but {n} was given.")
        row = self._row(condition)
        generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], seed, "new cells"))
        numbers = torch.randint(self.n_draws, (n,), generator=generator).numpy()
        out = np.zeros((n, len(self.genes)), dtype=np.float32)
        with torch.no_grad():
            out[:, self.active] = self.recipe.cells(row, numbers, generator).numpy()
        return out

    def cell_log_density(self, condition: str, cells: Array, genes: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Log density of measured new cells (n, genes) of one condition, (n,), in nats, from its predicted mean and covariance.

        cells: log expression on the scale of the predictions, genes in the order of `genes` (default: all). Genes that no
        training cell had are left out. What law that is: `prediction.cell_density`. Raises InputError for a gene or shape that
        does not fit.
        """
        from .cell_density import cell_log_density

        names = [str(g) for g in (self.genes if genes is None else genes)]
        place = {str(g): i for i, g in enumerate(self.genes)}
        if absent := [g for g in names if g not in place]:
            raise InputError(f"the gene {absent[0]!r} was not predicted; ask for genes of the posterior.")
        values = np.asarray(cells)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise InputError(f"cells must have a column for each of {len(names)} genes, but their shape is {values.shape}.")
        at = np.array([place[g] for g in names], dtype=np.int64)
        kept = self.active[at]
        columns = (np.cumsum(self.active) - 1)[at[kept]]
        return cell_log_density(self.recipe, self._row(condition), values[:, kept], columns)

    def to_datatree(self, test: ConditionSummary | None = None, *, genes: Sequence[str] | None = None) -> DataTree:
        """These predictions as an ArviZ DataTree, see `docs/arviz.md`; chains are the members of an ensemble.

        With measured summaries of these conditions (`test`) they stand beside them: posterior_predictive for the numbers of
        cells of the test, observed_data, and log_likelihood by condition. Without, they are in the group predictions. `genes`:
        default all that were fitted; latent_mean and y_bulk take 4 bytes x draws x conditions x genes each: 80 MB for 200 draws
        of 20 conditions and 5,000 genes. Raises InputError for a condition that the test lacks and a gene that either lacks.
        """
        from ..report.datatree import posterior_tree

        return posterior_tree(self, test, genes)

    def contrast(self, a: str, b: str) -> Contrast:
        """Latent mean of `a` minus that of `b`, draw by draw; both must be among the predicted conditions."""
        one, two = self._latent(self._row(a)), self._latent(self._row(b))
        name = f"{self.conditions[self._row(a)]} - {self.conditions[self._row(b)]}"
        return Contrast(name, self.genes, one - two, "difference of two predictions of the same draws")

    def interaction(self, combination: str, responding: bool = False) -> Contrast:
        """Combination minus the sum of its singles' shifts, draw by draw (latent mean): 0 is additive.

        The posterior must hold the combination; its singles and the control are predicted with the same draws. Cells that escape
        (penetrance "on") are in these means as they are in measured ones, and make them less than additive by themselves:
        `responding` compares cells that respond.
        """
        row = self._row(combination)
        if self.n_targets[row] < 2:
            raise InputError(
                f"'{self.conditions[row]}' has fewer than two targets; ask for the interaction of a combination."
            )
        recipe, design = self.recipe, self.recipe.design[row]
        if responding:
            recipe = recipe.asking(escape=False)
        targets = torch.nonzero(design).flatten().tolist()
        rows = torch.zeros(len(targets) + 1, design.shape[0])
        for i, p in enumerate(targets):
            rows[i, p] = design[p]
        n = len(targets) + 1
        names = (self.conditions[row],) * n  # the same draws of everything, the batch shares among it
        # all parts with the combination's own batches, so that the interaction is not one of batches
        own = recipe.own_batches[row].expand(n, -1)
        parts = recipe.asking(
            conditions=names,
            design=rows,
            trained=np.full(n, -1),
            n_cells=np.full(n, 10**6),
            own_batches=own,
        )
        blocks = [latent for _, latent, _ in parts.blocks()]
        latent = torch.cat(blocks, 1).numpy()
        additive = latent[:, :-1].sum(1) - (len(targets) - 1) * latent[:, -1]
        draws = np.zeros((self.n_draws, len(self.genes)), dtype=np.float32)
        draws[:, self.active] = self._latent(row, recipe)[:, self.active] - additive
        if recipe.trained[row] >= 0:
            note = "this combination was trained: size and direction are learnt from its cells"
        elif self.composition_is_additive:
            note = ("no cell of this combination was trained and composition is additive: the direction of the interaction "
                    "comes from the prior alone, only its likely size is informed")  # fmt: skip
        else:
            note = ("no cell of this combination was trained: the interaction is what the composition says of the two effects, "
                    "its spread is the interaction prior's")  # fmt: skip
        return Contrast(self.conditions[row], self.genes, draws, note)

    def _latent(self, row: int, recipe: Recipe | RecipeMixture | None = None) -> Array:
        recipe = recipe or self.recipe
        one = recipe.asking(conditions=recipe.conditions[row : row + 1], design=recipe.design[row : row + 1],
                            trained=recipe.trained[row : row + 1], n_cells=recipe.n_cells[row : row + 1],
                            own_batches=recipe.own_batches[row : row + 1])  # fmt: skip
        out = np.zeros((self.n_draws, len(self.genes)), dtype=np.float32)
        out[:, self.active] = next(iter(one.blocks()))[1][:, 0].numpy()
        return out

    def _row(self, condition: str) -> int:
        name = condition if condition in self.conditions else parse_request([condition], self.targets)[0]
        if name not in self.conditions:
            shown = ", ".join(self.conditions[:8])
            raise InputError(
                f"'{condition}' is not among the predicted conditions ({shown}, ...); ask predict() for it first."
            )
        return self.conditions.index(name)


def _known(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise InputError(f"kind {kind!r} is unknown; choose {listing([repr(k) for k in kinds])}.")
