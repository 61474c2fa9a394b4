"""Unit-dose effects of single targets from a training summary, and the conditions to predict from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SingleEffects:
    """Shift from control of each training target at dose 1, over G genes.

    targets (T,); seen (T,) whether a single-target condition was trained; shift (T, G), zero where unseen;
    precision (T,) = sum n u^2, the cells behind a shift; noise (T, G) its sampling variance without the
    control's share; control_weight (T,) how often the control mean was subtracted (1 for one condition at
    dose 1). control (G,) mean, control_noise (G,) its sampling variance; cell_variance (G,) pooled within
    conditions.
    """

    targets: tuple[str, ...]
    seen: Mask
    shift: Array
    precision: Array
    noise: Array
    control_weight: Array
    control: Array
    control_noise: Array
    cell_variance: Array


@dataclass(frozen=True, eq=False)
class Request:
    """Conditions to predict: doses design (C, T) over the training targets, n_cells (C,) of pseudobulks.

    n_targets (C,) counts every target of a condition, seen (C,) those with a trained single; unseen_square
    (C,) sums u^2 over the others.
    """

    design: Array
    n_cells: Array
    unseen_square: Array
    n_targets: NDArray[np.int64]
    seen: NDArray[np.int64]

    @property
    def complete(self) -> Mask:
        """Combinations of which every target was trained on its own, (C,)."""
        return np.asarray((self.n_targets >= 2) & (self.seen == self.n_targets))

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Number of pairs of targets in each condition, (C,)."""
        return self.n_targets * (self.n_targets - 1) // 2


def cell_variance(training: ConditionSummary) -> Array:
    """Within-condition variance pooled over conditions, weighted by their degrees of freedom, (G,)."""
    freedom = np.maximum(np.asarray(training.n_cells, float) - 1, 0)
    if freedom.sum() == 0:
        return np.zeros(len(training.genes))
    return np.asarray(freedom @ training.variance / freedom.sum())


def mean_noise(summary: ConditionSummary, pooled: ArrayLike | None = None) -> Array:
    """Sampling variance s2 / n of condition means, (C, G); one-cell conditions borrow the pooled s2."""
    n = np.asarray(summary.n_cells, float)[:, None]
    spare = cell_variance(summary) if pooled is None else np.asarray(pooled, float)
    return np.asarray(np.where(n >= 2, summary.variance, spare) / n)


def control_row(summary: ConditionSummary) -> int:
    """Index of the condition without a target. Raises InputError where there is none."""
    rows = np.flatnonzero(~np.asarray(summary.design != 0).any(axis=1))
    if not len(rows):
        raise InputError(
            "The training data hold no control cells, so shifts have no reference: train with controls."
        )
    return int(rows[0])


def single_effects(training: ConditionSummary) -> SingleEffects:
    """Shift of each target at dose 1 from its single-target conditions.

    One condition at dose u gives ``d / u``; several doses are joined by least squares through the origin,
    weighted by cells: ``sum n u d / sum n u^2``. Raises InputError without a control condition.
    """
    design, n = np.asarray(training.design, float), np.asarray(training.n_cells, float)
    zero = control_row(training)
    pooled = cell_variance(training)
    noise = mean_noise(training, pooled)
    single = (design != 0).sum(axis=1) == 1
    doses = np.where(single[:, None], design, 0.0)
    precision = n @ doses**2
    seen = precision > 0
    weight = n[:, None] * doses / np.where(seen, precision, 1.0)  # (conditions, targets)
    return SingleEffects(
        targets=tuple(training.targets),
        seen=seen,
        shift=weight.T @ (training.mean - training.mean[zero]),
        precision=precision,
        noise=(weight**2).T @ noise,
        control_weight=weight.sum(axis=0),
        control=np.asarray(training.mean[zero], float),
        control_noise=noise[zero],
        cell_variance=pooled,
    )


def request(
    effects: SingleEffects, design: ArrayLike, n_cells: ArrayLike, targets: Sequence[str] | None = None
) -> Request:
    """Express a design (C, T') over ``targets`` (default: the training targets) in the training targets.

    n_cells is one number or (C,). Raises ValueError when the shapes disagree or a cell count is below one.
    """
    doses = np.atleast_2d(np.asarray(design, float))
    names = effects.targets if targets is None else tuple(targets)
    if doses.shape[1] != len(names):
        raise ValueError(f"a design over {len(names)} targets needs as many columns, not {doses.shape[1]}")
    cells = np.broadcast_to(np.asarray(n_cells, float), (len(doses),)).copy()
    if (cells < 1).any():
        raise ValueError("a pseudobulk needs one cell or more")
    place = {name: index for index, name in enumerate(effects.targets)}
    known = [index for index, name in enumerate(names) if name in place]
    aligned = np.zeros((len(doses), len(effects.targets)))
    aligned[:, [place[names[index]] for index in known]] = doses[:, known]
    return Request(
        design=aligned,
        n_cells=cells,
        unseen_square=(doses**2).sum(axis=1) - aligned**2 @ effects.seen,
        n_targets=(doses != 0).sum(axis=1),
        seen=((aligned != 0) & effects.seen).sum(axis=1),
    )


def seen_counts(
    training: ConditionSummary, design: ArrayLike, targets: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """How many targets of each condition of a design (C, T') were trained as singles, (C,)."""
    return request(single_effects(training), design, 1, targets).seen


def stratum(n_targets: int, seen: int) -> str:
    """Name of a condition's stratum, as in `Split.table`: "both seen", "one unseen", ...; never pooled."""
    if n_targets == 0:
        return "control"
    if n_targets == 1:
        return "seen" if seen else "unseen"
    if seen in (0, n_targets):
        return f"{'both' if n_targets == 2 else 'all'} {'seen' if seen else 'unseen'}"
    missing = n_targets - seen
    return "one unseen" if missing == 1 else f"{missing} of {n_targets} unseen"
