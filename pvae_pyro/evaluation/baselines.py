"""Closed-form predictions of combinations, from training data only, and what their errors should look like.

d_A is the shift of a trained single target from the training controls at dose 1; doses multiply, a target
never trained on its own adds nothing, and a scale other than 1 applies to combinations only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.effects import (
    Request,
    SingleEffects,
    request,
    single_effects,
)
from pvae_pyro.evaluation.kernel import InteractionRidge, PairKernel
from pvae_pyro.evaluation.simple import DESCRIPTIONS as SIMPLE
from pvae_pyro.evaluation.simple import simple_means
from pvae_pyro.inference.shrinkage import ShrunkShifts, noise_sd, shrink

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]

# Norman pairs are mildly sub-additive (0.75 to 0.85 x additive); singles alone do not tell the scale
PRIOR_SCALE = 0.85
RANK = 30
KERNEL_SCORES = 8
KERNEL_PENALTY = 0.5
# weight, in combinations, of the average ratio of interaction to cell variance over genes
VARIANCE_PRIOR = 4.0

NO_CHANGE = "no change"
OWN_MEAN = "training cells' own mean"
MEAN_OF_SINGLES = "mean of the singles"
ADDITIVE = "additive"
SCALED = "scaled additive"
LOW_RANK = "low-rank additive"
LOW_RANK_PRIOR = "0.85 x low-rank additive"
SHRUNK = "shrunk additive"
SHRUNK_PRIOR = "0.85 x shrunk additive"
SCALED_SHRUNK = "scaled shrunk additive"
KERNEL_RIDGE = "scaled shrunk additive + kernel ridge"
NOISE_ONLY = " (sampling noise only)"
ORACLE = " (widths fitted on the scored conditions)"

DESCRIPTIONS = {
    NO_CHANGE: "control mean",
    OWN_MEAN: "mean of the condition's own training cells, where it was trained",
    MEAN_OF_SINGLES: "control + average of the single shifts",
    ADDITIVE: "control + sum of the single shifts",
    SCALED: f"control + k x sum, k fitted on training combinations, {PRIOR_SCALE} by assumption without any",
    LOW_RANK: f"additive on the {RANK} leading principal directions of the single shifts",
    LOW_RANK_PRIOR: f"the same, combinations x {PRIOR_SCALE} by assumption",
    SHRUNK: "additive on single shifts after noise-weighted optimal singular-value shrinkage",
    SHRUNK_PRIOR: f"the same, combinations x {PRIOR_SCALE} by assumption",
    SCALED_SHRUNK: "shrinkage of single and combination shifts together, combinations x fitted k",
    KERNEL_RIDGE: "the same + kernel ridge on the shrunk residuals of the training combinations",
} | SIMPLE


@dataclass(frozen=True, eq=False)
class _Form:
    """A point prediction, its scale on combinations, and its training residuals (N, G) where fitted."""

    mean: Array
    scale: float
    residuals: Array | None


@dataclass(frozen=True, eq=False)
class _Forms:
    """Every closed form for one request, and what was learnt from the training combinations."""

    effects: SingleEffects
    asked: Request
    trained: Request
    points: dict[str, _Form]

    @property
    def best(self) -> str:
        """The closed form that does best on Norman doubles, given what there is to fit on."""
        return KERNEL_RIDGE if KERNEL_RIDGE in self.points else SHRUNK_PRIOR


def baselines(
    training: ConditionSummary, design: ArrayLike, n_cells: ArrayLike, targets: Sequence[str] | None = None
) -> dict[str, Prediction]:
    """Every baseline for conditions with doses design (C, T) over ``targets`` (default: training targets).

    n_cells, one number or (C,), is the size of the predicted pseudobulks and matters to the probabilistic
    versions only. Their variance is that of the prediction's sampling noise, plus the pseudobulk's own,
    plus an interaction variance per gene and pair fitted on training combinations (method of moments);
    without any of those it is 0, which the name says. Raises InputError without a control condition.
    Source: evaluation.md section 3, data/README.md.
    """
    forms = _closed_forms(training, design, n_cells, targets)
    result = {name: Prediction(form.mean) for name, form in forms.points.items()}
    for name in (ADDITIVE, forms.best):
        form = forms.points[name]
        noise = _sampling_noise(forms.effects, forms.asked, form.scale)
        if form.residuals is None:
            result[f"probabilistic {name}{NOISE_ONLY}"] = Prediction(form.mean, np.sqrt(noise))
            continue
        known = _sampling_noise(forms.effects, forms.trained, form.scale)
        pairs, cells = forms.trained.pairs, forms.effects.cell_variance
        width = interaction_variance(form.residuals, known, pairs, cells)
        result[f"probabilistic {name}"] = Prediction(
            form.mean, np.sqrt(noise + forms.asked.pairs[:, None] * width)
        )
    return result


def oracle_baselines(training: ConditionSummary, truth: ConditionSummary) -> dict[str, Prediction]:
    """Probabilistic additive and best closed form with widths fitted on the scored combinations.

    They look at the answer and so flatter the baseline: for comparison only, and their names say so. The
    variance per gene is ``max(0, mean_p [e^2 - SE^2])`` over the combinations of ``truth``; rows are the
    conditions of ``truth``.
    """
    forms = _closed_forms(training, truth.design, truth.n_cells, truth.targets)
    combined = forms.asked.n_targets >= 2
    result = {}
    for name in (ADDITIVE, forms.best):
        form = forms.points[name]
        noise = _sampling_noise(forms.effects, forms.asked, form.scale)
        error = (truth.mean - form.mean)[combined]
        pairs, cells = forms.asked.pairs[combined], forms.effects.cell_variance
        width = interaction_variance(error, noise[combined], pairs, cells, prior=0.0)
        variance = noise + forms.asked.pairs[:, None] * width
        result[f"probabilistic {name}{ORACLE}"] = Prediction(form.mean, np.sqrt(variance))
    return result


def interaction_variance(
    residuals: Array, noise: Array, pairs: ArrayLike, cell_variance: Array, prior: float = VARIANCE_PRIOR
) -> Array:
    """Variance per gene (G,) of what N combinations do beyond a prediction, per pair of their targets.

    ``tau2_g = max(0, mean_p [(e^2 - SE^2) / pairs])`` for residuals and sampling variances (N, G), drawn
    towards the same multiple of cell_variance (G,) in all genes with the weight of ``prior`` combinations
    (the effect of an inverse-gamma prior). Zero without combinations.
    """
    count = len(residuals)
    if not count:
        return np.zeros(residuals.shape[1])
    raw = np.maximum(((residuals**2 - noise) / np.asarray(pairs, float)[:, None]).mean(axis=0), 0.0)
    total = float(cell_variance.sum())
    common = cell_variance * (raw.sum() / total) if total > 0 else raw
    return np.asarray((count * raw + prior * common) / (count + prior))


def fitted_scale(shifts: ArrayLike, sums: ArrayLike) -> float:
    """Least-squares ``k = sum d . s / sum |s|^2`` of shifts d on sums s, (N, G); PRIOR_SCALE for zero s."""
    d, s = np.asarray(shifts, float), np.asarray(sums, float)
    square = float((s**2).sum())
    return float((d * s).sum()) / square if square > 0 else PRIOR_SCALE


def _closed_forms(
    training: ConditionSummary, design: ArrayLike, n_cells: ArrayLike, targets: Sequence[str] | None
) -> _Forms:
    effects = single_effects(training)
    asked = request(effects, design, n_cells, targets)
    everything = request(effects, training.design, training.n_cells)
    rows = np.flatnonzero(everything.complete)
    trained = request(effects, training.design[rows], training.n_cells[rows])
    shifts = training.mean[rows] - effects.control
    control = effects.control

    def form(unit: Array, scale: float, fitted: bool = False) -> _Form:
        factor = np.where(asked.n_targets >= 2, scale, 1.0)[:, None]
        residuals = shifts - scale * (trained.design @ unit) if fitted else None
        return _Form(control + factor * (asked.design @ unit), scale, residuals)

    share = 1 / np.maximum(asked.n_targets, 1)[:, None]
    fits = len(rows) > 0
    scale = fitted_scale(shifts, trained.design @ effects.shift) if fits else PRIOR_SCALE
    low_rank, shrunk = _low_rank(effects), _shrunk_units(effects, training).shifts
    low_rank_units, shrunk_units = _spread(effects, low_rank), _spread(effects, shrunk)
    points = {
        NO_CHANGE: _Form(np.tile(control, (len(asked.design), 1)), 0.0, None),
        MEAN_OF_SINGLES: _Form(control + share * (asked.design @ effects.shift), 1.0, None),
        ADDITIVE: form(effects.shift, 1.0, fits),
        SCALED: form(effects.shift, scale, fits),
        LOW_RANK: form(low_rank_units, 1.0),
        LOW_RANK_PRIOR: form(low_rank_units, PRIOR_SCALE),
        SHRUNK: form(shrunk_units, 1.0),
        SHRUNK_PRIOR: form(shrunk_units, PRIOR_SCALE),
    }
    simple = simple_means(training, effects, asked, trained, shifts)
    points |= {name: _Form(mean, 1.0, None) for name, mean in simple.items()}
    own = _own_means(training, everything, asked)
    if own is not None:
        points[OWN_MEAN] = _Form(own, 1.0, None)
    if fits:
        joint = _shrunk_units(effects, training, rows)
        units = _spread(effects, joint.shifts[: int(effects.seen.sum())])
        joint_scale = fitted_scale(shifts, trained.design @ units)
        base = form(units, joint_scale, True)
        assert base.residuals is not None
        ridge = _ridge(effects, training, trained, joint, units, base.residuals)
        points[SCALED_SHRUNK] = base
        points[KERNEL_RIDGE] = _Form(
            base.mean + ridge.predict(asked.design), joint_scale, base.residuals - ridge.left_out
        )
    return _Forms(effects, asked, trained, points)


def _ridge(
    effects: SingleEffects,
    training: ConditionSummary,
    trained: Request,
    joint: ShrunkShifts,
    units: Array,
    residuals: Array,
) -> InteractionRidge:
    """Kernel ridge on residuals shrunk as shifts are, targets placed by their leading noise-scaled scores."""
    scores = joint.project(units)[:, :KERNEL_SCORES]
    kernel = PairKernel.from_scores(scores, effects.seen)
    sd = noise_sd(training.variance, training.n_cells)
    shrunk = shrink(residuals, trained.n_cells, sd).shifts
    return InteractionRidge.fit(kernel, trained.design, shrunk, KERNEL_PENALTY)


def _low_rank(effects: SingleEffects) -> Array:
    """Shifts of the seen targets on their leading principal directions (uncentred: control is the origin)."""
    u, s, vt = np.linalg.svd(effects.shift[effects.seen], full_matrices=False)
    return np.asarray((u[:, :RANK] * s[:RANK]) @ vt[:RANK])


def _shrunk_units(
    effects: SingleEffects, training: ConditionSummary, rows: NDArray[np.int64] | None = None
) -> ShrunkShifts:
    """Shrink the seen targets' shifts, followed by those of the training combinations ``rows``."""
    shifts, cells = effects.shift[effects.seen], effects.precision[effects.seen]
    if rows is None:
        # combinations must not touch a baseline of the singles, not even through the noise level
        single = (np.asarray(training.design) != 0).sum(axis=1) <= 1
        return shrink(shifts, cells, noise_sd(training.variance[single], training.n_cells[single]))
    sd = noise_sd(training.variance, training.n_cells)
    combined = training.mean[rows] - effects.control
    return shrink(np.vstack([shifts, combined]), np.append(cells, training.n_cells[rows]), sd)


def _spread(effects: SingleEffects, seen_shifts: Array) -> Array:
    """Put shifts of the seen targets back among all targets, (T, G), zero for the unseen."""
    units = np.zeros_like(effects.shift)
    units[effects.seen] = seen_shifts
    return units


def _own_means(training: ConditionSummary, everything: Request, asked: Request) -> Array | None:
    """Training means of the conditions asked; None unless every one of them was trained."""
    place = {row.tobytes(): index for index, row in enumerate(everything.design)}
    found = [place.get(row.tobytes()) for row in asked.design]
    unknown = (asked.design != 0).sum(axis=1) < asked.n_targets
    if unknown.any() or any(index is None for index in found):
        return None
    return np.asarray(training.mean[[index for index in found if index is not None]], float)


def _sampling_noise(effects: SingleEffects, asked: Request, scale: float) -> Array:
    """Variance (C, G) of prediction minus measured pseudobulk, interactions apart.

    ``sum_p (k u_p)^2 s2_p / n_p + (1 - k sum_p u_p)^2 s2_0 / n_0 + s2hat / n``; for two singles at dose 1
    and k = 1 the probabilistic additive of evaluation.md. A target never trained alone adds the spread of
    effects over targets. Shrunk shifts keep the noise of the unshrunk ones: what shrinkage removes in
    variance it adds in bias.
    """
    factor = np.where(asked.n_targets >= 2, scale, 1.0)
    doses = factor[:, None] * asked.design
    variance = doses**2 @ effects.noise
    variance += (1 - doses @ effects.control_weight)[:, None] ** 2 * effects.control_noise
    seen = effects.seen
    if (asked.seen < asked.n_targets).any() and seen.any():
        spread = np.maximum((effects.shift[seen] ** 2 - effects.noise[seen]).mean(axis=0), 0.0)
        variance += (factor**2 * asked.unseen_square)[:, None] * spread
    return np.asarray(variance + effects.cell_variance / asked.n_cells[:, None])
