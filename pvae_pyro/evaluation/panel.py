"""Every further point metric of a prediction at once, from what is known of the scored conditions and of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pvae_pyro.evaluation.effects import mean_noise, request, single_effects
from pvae_pyro.evaluation.legacy import mse_top_de, r2_mean_legacy
from pvae_pyro.evaluation.metrics import delta_pearson, l2
from pvae_pyro.evaluation.points import (
    delta_cosine,
    delta_slope,
    deviation_weights,
    discrimination,
    log_fold_cosine,
    log_fold_error,
    r2_mean,
    significant,
    top_expressed,
    top_overlap,
    weighted_mse,
    weighted_r2,
)

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]

SKILL_TERMS = ("skill_over_additive_numerator", "skill_over_additive_denominator")
FURTHER = (
    "l2_top1000",
    "delta_slope",
    "delta_pearson_perturbed",
    "delta_cosine_perturbed",
    "skill_over_additive",
    "pds_cosine",
    "pds_cosine_hard",
    "centroid_accuracy",
    "wmse",
    "r2_delta_weighted",
    "log_fold_cosine",
    "log_fold_error",
    "de_overlap",
    "r2_mean",
)
"""Point metrics beside the headline, in the order in which they are shown."""
LARGE_IS_GOOD = frozenset(FURTHER) - {"l2_top1000", "delta_slope", "wmse", "log_fold_error"}


@dataclass(frozen=True, eq=False)
class Panel:
    """The scored conditions (R,) over G genes, and what training says of them.

    ``kept`` are the genes of these metrics: all but those of the panel's targets, whose own expression says more of the
    perturbation than of the prediction. centre (G,) is the mean of the training perturbations; additive (R, G) and hard
    (per condition its singles' shifts, (K, G)) are nan and empty where a single was not trained. None without training.
    """

    control: tuple[Array, Array, int]
    truth: Array
    variance: Array
    n_cells: NDArray[np.int64]
    n_targets: NDArray[np.int64]
    noise: Array
    kept: NDArray[np.int64]
    weights: Array
    changed: NDArray[np.bool_]
    centre: Array | None
    additive: Array | None
    hard: tuple[Array, ...]

    @classmethod
    def of(
        cls,
        truth: ConditionSummary,
        rows: NDArray[np.int64],
        control: tuple[ArrayLike, ArrayLike, int],
        training: ConditionSummary | None = None,
    ) -> Panel:
        """rows: the perturbed conditions of truth; control: mean, variance (G,) and number of the training control cells."""
        reference = np.asarray(control[0], float), np.asarray(control[1], float), int(control[2])
        mean, variance = (np.asarray(one, float)[rows] for one in (truth.mean, truth.variance))
        targets = set(truth.targets) | set(training.targets if training else ())
        centre = additive = None
        hard: tuple[Array, ...] = ()
        if training is not None:
            perturbed = (np.asarray(training.design) != 0).any(axis=1)
            centre = np.asarray(training.mean[perturbed].mean(axis=0)) if perturbed.any() else None
            effects = single_effects(training)
            asked = request(effects, np.asarray(truth.design)[rows], 1, truth.targets)
            additive = np.where(
                asked.complete[:, None], effects.control + asked.design @ effects.shift, np.nan
            )
            hard = tuple(effects.shift[(doses != 0) & effects.seen] for doses in asked.design)
        n_cells = np.asarray(truth.n_cells)[rows]
        return cls(
            control=reference,
            truth=mean,
            variance=variance,
            n_cells=n_cells,
            n_targets=(np.asarray(truth.design)[rows] != 0).sum(axis=1),
            noise=mean_noise(truth)[rows],
            kept=np.array([g for g, name in enumerate(truth.genes) if str(name) not in targets], np.int64),
            weights=deviation_weights(mean, variance, n_cells),
            changed=significant(mean, variance, n_cells, reference),
            centre=centre,
            additive=additive,
            hard=hard,
        )

    def columns(self, predicted: ArrayLike) -> dict[str, Array]:
        """Values (R,) of every metric that exists for a prediction (R, G); ``SKILL_TERMS`` are those of a ratio of sums."""
        whole = np.asarray(predicted, float)
        x0, s20, n0 = self.control
        found = {
            "legacy_r2_mean": r2_mean_legacy(whole, self.truth),
            "legacy_mse_top20_de": mse_top_de(whole, self.truth, self.variance, self.n_cells, (x0, s20, n0)),
        }
        genes = self.kept
        if not len(genes):
            return found
        guess, truth, origin = whole[:, genes], self.truth[:, genes], x0[genes]
        weights, changed = self.weights[:, genes], self.changed[:, genes]
        top = top_expressed(origin)
        found |= {
            "l2_top1000": l2(guess[:, top], truth[:, top]),
            "delta_slope": delta_slope(guess, truth, origin),
            "wmse": weighted_mse(guess, truth, weights),
            "log_fold_cosine": log_fold_cosine(guess, truth, origin),
            "log_fold_error": log_fold_error(guess, truth, origin, changed),
            "de_overlap": top_overlap(guess - origin, changed),
            "r2_mean": r2_mean(guess, truth),
        }
        found |= self._ranks(guess - origin, truth - origin, genes)
        if self.centre is not None:
            centre = self.centre[genes]
            found["delta_pearson_perturbed"] = delta_pearson(guess, truth, centre)[0]
            found["delta_cosine_perturbed"] = delta_cosine(guess, truth, centre)[0]
            found["r2_delta_weighted"] = weighted_r2(guess, truth, centre, weights)
        if self.additive is not None:
            noise = self.noise[:, genes].sum(axis=1)
            own = ((guess - truth) ** 2).sum(axis=1)
            rule = ((self.additive[:, genes] - truth) ** 2).sum(axis=1)
            found |= dict(zip(SKILL_TERMS, (rule - own, rule - noise), strict=True))
        return {name: values for name, values in found.items() if not np.isnan(values).all()}

    def _ranks(self, guess: Array, truth: Array, genes: NDArray[np.int64]) -> dict[str, Array]:
        """Ranks among the scored conditions of as many targets, for combinations also among their own singles."""
        names = ("pds_cosine", "pds_cosine_hard", "centroid_accuracy")
        found = {name: np.full(len(truth), np.nan) for name in names}
        for count in np.unique(self.n_targets):
            rows = np.flatnonzero(self.n_targets == count)
            own = np.arange(len(rows))
            found["pds_cosine"][rows] = discrimination(guess[rows], truth[rows], own)
            found["centroid_accuracy"][rows] = discrimination(guess[rows], truth[rows], own, "euclidean")
            for place, row in enumerate(rows if self.hard and count > 1 else ()):
                candidates = np.concatenate([truth[rows], self.hard[row][:, genes]])
                found["pds_cosine_hard"][row] = discrimination(guess[[row]], candidates, [place])[0]
        return found
