"""Closed-form rivals: means of combinations from training conditions, each with eight settings to be tuned among.

A rival is a function of what may be known, the doses asked (C, T) over the training targets, and its settings; it returns
predicted means (C, G). Whatever has a scale k multiplies combinations by it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import ElasticNet
from sklearn.neighbors import KNeighborsRegressor

import pvae_pyro as pv
from pvae_pyro.evaluation.baselines import fitted_scale
from pvae_pyro.evaluation.effects import SingleEffects, request, single_effects
from pvae_pyro.evaluation.kernel import InteractionRidge, PairKernel
from pvae_pyro.evaluation.simple import bilinear_ridge
from pvae_pyro.inference.shrinkage import ShrunkShifts, noise_sd, shrink

Array = NDArray[np.float64]
SCORES = 10  # leading directions of the singles that regressions may see in place of the names of the targets


@dataclass(frozen=True, eq=False)
class Known:
    """Training conditions, and the cells behind them (for axes that are those of cells)."""

    training: pv.ConditionSummary
    cells: pv.Screen

    @cached_property
    def effects(self) -> SingleEffects:
        return single_effects(self.training)

    @cached_property
    def perturbed(self) -> NDArray[np.bool_]:
        return np.asarray((self.training.design != 0).any(axis=1))

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """Training combinations whose targets were all trained alone."""
        return np.flatnonzero(request(self.effects, self.training.design, self.training.n_cells).complete)

    @property
    def shifts(self) -> Array:
        return np.asarray(self.training.mean - self.effects.control)

    @cached_property
    def shrunk(self) -> ShrunkShifts:
        """Shifts of the trained singles, in the order of the targets, then those of the combinations, shrunk together."""
        seen, summary = self.effects.seen, self.training
        stacked = np.vstack([self.effects.shift[seen], self.shifts[self.pairs]])
        cells = np.append(self.effects.precision[seen], summary.n_cells[self.pairs])
        return shrink(stacked, cells, noise_sd(summary.variance, summary.n_cells))

    @cached_property
    def units(self) -> Array:
        """Shrunk shifts of all targets, (T, G)."""
        units = np.zeros_like(self.effects.shift)
        units[self.effects.seen] = self.shrunk.shifts[: int(self.effects.seen.sum())]
        return units

    @cached_property
    def axes(self) -> Array:
        """Principal axes of the training cells, largest first, (G, G) in rows."""
        return np.asarray(np.linalg.eigh(np.cov(self.cells.expression.toarray(), rowvar=False))[1].T[::-1])


Settings = Mapping[str, Any]
Rule = Callable[[Known, Array, Settings], Array]


def no_change(known: Known, asked: Array, settings: Settings) -> Array:
    return np.tile(known.effects.control, (len(asked), 1))


def sums(known: Known, asked: Array, units: Array, k: float = 1.0) -> Array:
    """Control + k x the sum of these shifts (T, G)."""
    factor = np.where((asked != 0).sum(axis=1) >= 2, k, 1.0)[:, None]
    return np.asarray(known.effects.control + factor * (asked @ units))


def additive(known: Known, asked: Array, settings: Settings) -> Array:
    return sums(known, asked, known.effects.shift, settings.get("k", 1.0))


def low_rank(known: Known, asked: Array, settings: Settings) -> Array:
    """Additive on the leading principal directions of all trained shifts."""
    directions = np.linalg.svd(known.shifts[known.perturbed], full_matrices=False)[2][: settings["rank"]]
    return sums(known, asked, known.effects.shift @ directions.T @ directions, settings["k"])


def shrunk(known: Known, asked: Array, settings: Settings) -> Array:
    return sums(known, asked, known.units, settings["k"])


def pca_additive(known: Known, asked: Array, settings: Settings) -> Array:
    """Latent arithmetic: shifts along the principal axes of the training cells, added, decoded."""
    axes = known.axes[: settings["components"]]
    return sums(known, asked, known.effects.shift @ axes.T @ axes)


def bilinear(known: Known, asked: Array, settings: Settings) -> Array:
    """Ahlmann-Eltze et al. 2025: linear in the embeddings of the targets' own genes."""
    made = bilinear_ridge(known.training, known.perturbed, asked, settings["components"], settings["penalty"])
    if made is None:
        raise pv.InputError("bilinear ridge needs targets that are measured genes; this screen has none.")
    return made


def kernel_ridge(known: Known, asked: Array, settings: Settings) -> Array:
    """Scaled shrunk additive + kernel ridge on the shrunk residuals of the training combinations."""
    design, shifts = known.training.design[known.pairs].astype(float), known.shifts[known.pairs]
    k = fitted_scale(shifts, design @ known.units)
    kernel = PairKernel.from_scores(known.shrunk.project(known.units)[:, : settings["scores"]], known.effects.seen)
    n_cells = known.training.n_cells
    left = shrink(shifts - k * design @ known.units, n_cells[known.pairs], noise_sd(known.training.variance, n_cells))
    ridge = InteractionRidge.fit(kernel, design, left.shifts, settings["penalty"])
    return sums(known, asked, known.units, k) + ridge.predict(asked)


def regression(make: Callable[[Settings], RegressorMixin]) -> Rule:
    """A regression of shifts on who was perturbed ("names", multi-hot) or on the sum of the targets' scores ("scores")."""

    def rule(known: Known, asked: Array, settings: Settings) -> Array:
        features = np.eye(len(known.effects.seen))
        if settings["features"] == "scores":
            u, s, _ = np.linalg.svd(known.effects.shift, full_matrices=False)
            features = (u * s)[:, :SCORES]
        model = make({name: value for name, value in settings.items() if name != "features"})
        model.fit(known.training.design[known.perturbed] @ features, known.shifts[known.perturbed])
        return np.asarray(known.effects.control + model.predict(asked @ features))

    return rule


@dataclass(frozen=True)
class Closed:
    """A rule and the settings that it is tuned among; `needs_pairs`: nothing to fit on without combinations in training."""

    rule: Rule
    grid: tuple[Settings, ...] = ({},)
    needs_pairs: bool = False


def _grid(**values: tuple[Any, ...]) -> tuple[Settings, ...]:
    return tuple(dict(zip(values, one, strict=True)) for one in itertools.product(*values.values()))


SCALES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
FEATURES = ("names", "scores")
CLOSED: dict[str, Closed] = {
    "no change": Closed(no_change),
    "additive": Closed(additive),
    "scaled additive": Closed(additive, _grid(k=SCALES)),
    "low-rank additive": Closed(low_rank, _grid(rank=(15, 30), k=(0.7, 0.75, 0.8, 0.85))),
    "shrunk additive": Closed(shrunk, _grid(k=SCALES)),
    "PCA + additive": Closed(pca_additive, _grid(components=(10, 20, 40, 60, 100, 150, 250, 400))),
    "bilinear ridge": Closed(bilinear, _grid(components=(10, 50), penalty=(0.001, 0.01, 0.1, 1.0))),
    "kernel ridge": Closed(kernel_ridge, _grid(scores=(4, 8), penalty=(0.25, 0.5, 1.0, 2.0)), needs_pairs=True),
    "KNN": Closed(
        regression(lambda s: KNeighborsRegressor(**s)), _grid(features=FEATURES, n_neighbors=(1, 2, 4, 8))
    ),
    "elastic net": Closed(
        regression(lambda s: ElasticNet(l1_ratio=0.5, max_iter=5000, **s)),
        _grid(features=FEATURES, alpha=(3e-4, 1e-3, 3e-3, 1e-2)),
    ),
    "random forest": Closed(
        regression(lambda s: RandomForestRegressor(100, random_state=0, **s)),
        _grid(features=FEATURES, max_features=(0.3, 1.0), min_samples_leaf=(1, 3)),
    ),
}  # fmt: skip
