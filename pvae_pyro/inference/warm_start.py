"""Closed-form start of story and guide (design 3.1, 3.7): loadings, effects, background and the linear posterior maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from ..guides import AmortizedGuide
from ..screen import CONTROL, Screen
from ..story import Additive, NegativeBinomial, Saturating, Story
from ..story.model import PerturbedVAE
from .covariance import CellVariation, cell_variation
from .rotation import spike_slab_fit, varimax
from .shrinkage import shrink

Array = NDArray[np.float64]

# Variance of a responsive latent inside a condition, in units of the control cells' variance along its loading: most of
# that variance is measurement noise, and a larger share would count it twice.
RESPONSIVE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Start:
    """The start on the scale of the linear predictor; one latent unit is `unit` control-cell standard deviations."""

    unit: float
    intercept: Array  # (batches, genes)
    centre: Array  # (batches, genes), expression of control cells
    responsive: Array  # (latents, genes) loadings
    background: Array  # (background, genes) loadings
    scores: Array  # (conditions, latents) total shift of each training condition
    score_sd: Array  # (conditions,) its sampling sd
    scale: Array  # (latents,) empirical-Bayes size of effects
    noise: Array  # (genes,) sd, or inverse dispersion
    slope: Array  # (genes,) d expression / d predictor at control
    variation: CellVariation

    @property
    def rank(self) -> int:
        return int(self.responsive.shape[0])


def closed_form(model: PerturbedVAE, screen: Screen, rows: NDArray[np.int64]) -> Start:
    """Estimate everything that has a closed form from these training cells of the screen.

    1. Condition means and batch effects by least squares; within-condition covariance as diagonal plus low rank.
    2. Shifts, whitened by it and weighted by sqrt(cells), shrunk by optimal singular-value shrinkage, which picks the rank.
    3. Shrunk shifts carried to the predictor's scale by inverting the likelihood's mean, reduced to the same rank, rotated.
    """
    condition = screen.condition[rows]
    variation = cell_variation(screen.expression[rows], condition, screen.batch[rows], model.background)
    control = screen.conditions.index(CONTROL)
    others = [i for i in range(len(screen.conditions)) if i != control]
    n_cells = np.bincount(condition, minlength=len(screen.conditions)).astype(float)
    mean0 = variation.means[control]
    shrunk = shrink(variation.whiten(variation.means[others] - mean0), n_cells[others], np.ones(screen.n_genes))
    rank = model.responsive or int(np.clip(shrunk.rank, 2, 64))

    noise, slope0 = _noise(model, screen, rows, variation)
    solve = _Inverse(model, noise, screen.library[rows], mean0, variation, slope0)
    eta0 = solve(mean0[None])
    raw = variation.unwhiten(shrunk.shifts)
    eta = solve(np.maximum(mean0 + raw, 0.02 * mean0 + 1e-3)) - eta0
    slope = solve.slope(eta0[0])

    # back to whitened units, so that axes stay orthonormal there and effects have the cells' own unit
    weight = np.sqrt(n_cells[others])[:, None]
    u, s, vt = np.linalg.svd(variation.whiten(eta * slope) * weight, full_matrices=False)
    rank = min(rank, len(s))
    scores, axes = (u[:, :rank] * s[:rank]) / weight, vt[:rank]
    prior = _matched_prior(shrunk.values, rank, screen.n_genes, len(others), float(np.mean(n_cells[others])), scores)
    turn = varimax(scores)
    order = np.argsort(-((scores @ turn) ** 2).sum(axis=0))
    turn = turn[:, order]
    scores, axes, scale = scores @ turn, turn.T @ axes, np.sqrt((turn**2 * (prior**2)[:, None]).sum(axis=0))

    unit = math.sqrt(RESPONSIVE_SHARE)
    total = np.zeros((len(screen.conditions), rank))
    total[others] = scores / unit
    background = np.zeros((model.background, screen.n_genes))
    background[: len(variation.values)] = variation.loadings / slope
    batches = variation.batch_effects
    intercept = eta0 + solve.intercepts(mean0, batches) if len(batches) > 1 else eta0
    return Start(
        unit=unit,
        intercept=intercept,
        centre=mean0 + batches,
        responsive=unit * variation.unwhiten(axes) / slope,
        background=background,
        scores=total,
        score_sd=1 / (unit * np.sqrt(n_cells)),
        scale=scale / unit,
        noise=noise,
        slope=slope,
        variation=variation,
    )


def _matched_prior(values: Array, rank: int, n_genes: int, n_rows: int, n_cells: float, scores: Array) -> Array:
    """Prior sd (rank,) under which the posterior mean of a typical row shrinks as optimal shrinkage did.

    A shrunk value e came from y with e / y = t2 / (t2 + 1/n), so t2 = (e / y) / (1 - e / y) / n. It is lower than
    the spread of true effects: it also pays for the uncertainty of the loadings.
    """
    longer, beta = max(n_rows, n_genes), min(n_rows, n_genes) / max(n_rows, n_genes)
    e2 = np.zeros(rank)
    e2[: min(rank, len(values))] = (values[:rank] ** 2) / longer
    # invert e = sqrt((y^2 - beta - 1)^2 - 4 beta) / y
    y2 = ((2 * (beta + 1) + e2) + np.sqrt((2 * (beta + 1) + e2) ** 2 - 4 * (1 - beta) ** 2)) / 2
    kept = np.clip(np.sqrt(e2 / y2), 0.05, 0.999)
    return np.sqrt(kept / (1 - kept) / n_cells)


def _noise(
    model: PerturbedVAE, screen: Screen, rows: NDArray[np.int64], variation: CellVariation
) -> tuple[Array, Array]:
    """Per-gene noise of the likelihood (sd or inverse dispersion) and a first slope, each (genes,)."""
    leading = np.minimum((variation.directions**2 * np.maximum(variation.values - variation.rest, 0)).sum(axis=1), 0.9)
    if model.likelihood.observes == "expression":
        mean0 = variation.means[screen.conditions.index(CONTROL)]
        return variation.sd * np.sqrt(1 - leading), np.maximum(-np.expm1(-np.maximum(mean0, 1e-3)), 1e-3)
    assert screen.counts is not None
    control = rows[screen.condition[rows] == screen.conditions.index(CONTROL)]
    counts, library = screen.counts[control].astype(np.float64), screen.library[control] / 1e4
    rate = np.asarray(counts.sum(axis=0)).ravel() / library.sum()
    second = np.asarray(counts.multiply(counts).sum(axis=0)).ravel()
    cross = np.asarray(counts.T @ library).ravel()
    variance = second - 2 * rate * cross + rate**2 * (library**2).sum() - rate * library.sum()
    excess = np.maximum(variance, 0) / np.maximum(rate**2 * (library**2).sum(), 1e-12)
    # the background latents carry their part of the overdispersion
    inverse = 1 / np.clip(excess * (1 - leading), 0.02, 20)
    return inverse, np.maximum(rate / (1 + rate), 1e-3)


class _Inverse:
    """Linear predictor at which the likelihood's mean over cells is a given expression, by inverse interpolation."""

    def __init__(self, model: PerturbedVAE, noise: Array, library: Array, mean0: Array, variation: CellVariation, slope: Array):
        self.noise = torch.as_tensor(noise)
        self.likelihood = model.likelihood
        self.moments = model.likelihood.moments(self.noise, torch.as_tensor(library))
        identity = getattr(model.likelihood, "link", "") == "identity"
        low, high = (-1e3, 1e3) if identity else (-12.0, max(12.0, float(mean0.max()) * 4))
        spread = (variation.loadings**2).sum(axis=0) + RESPONSIVE_SHARE * 0.05 * variation.sd**2
        self.variance = torch.as_tensor(np.minimum(spread / slope**2, 1.0 if not identity else np.inf))

        self.grid = np.linspace(low, high, 1024)
        grid = torch.as_tensor(self.grid)[:, None].expand(-1, len(self.noise))
        self.values = self.moments(grid, self.variance.expand_as(grid), self.noise)[0].numpy()

    def __call__(self, mean: Array) -> Array:
        """Predictors (rows, genes) of means (rows, genes); means out of reach get the nearest end."""
        columns = [np.interp(mean[:, g], self.values[:, g], self.grid) for g in range(mean.shape[1])]
        return np.stack(columns, axis=1)

    def intercepts(self, mean0: Array, batch_effects: Array) -> Array:
        """Batch effects (batches, genes) on the predictor's scale."""
        return self(np.maximum(mean0 + batch_effects, 0.02 * mean0 + 1e-3)) - self(mean0[None])

    def slope(self, eta: Array) -> Array:
        """d mean expression / d predictor (genes,), averaged over cells, kept away from zero."""
        step, at = 0.05, torch.as_tensor(eta)
        up, _ = self.moments(at + step, self.variance, self.noise)
        down, _ = self.moments(at - step, self.variance, self.noise)
        return np.maximum(((up - down) / (2 * step)).numpy(), 1e-3)


@torch.no_grad()
def apply_start(start: Start, story: Story, guide: AmortizedGuide, screen: Screen) -> None:
    """Write the start into story and guide, in place."""

    def put(target: Tensor, value: Array | float) -> None:
        target.copy_(torch.as_tensor(np.array(value), dtype=target.dtype))

    put(story.unit, start.unit)  # type: ignore[arg-type]
    put(story.effect_scale, start.scale)
    put(story.noise_start, start.noise)
    put(story.spread, start.variation.sd / start.slope)
    decoder = story.decoder
    put(decoder.intercept, np.broadcast_to(start.intercept, decoder.intercept.shape))
    put(decoder.responsive, start.responsive)
    put(decoder.background, start.background)
    put(guide.centre, np.broadcast_to(start.centre, guide.centre.shape))
    put(guide.gene_sd, start.variation.sd)
    _posterior_maps(start, guide, put)
    _effects(start, story, guide, screen, put)
    sd = 1 / math.sqrt(2 * story.n_cells)
    put(guide.loc["noise"], np.log(start.noise))
    put(guide.log_scale["noise"], math.log(sd))
    if "coupling" in guide.loc:
        put(guide.log_scale["coupling"], math.log(0.02))
    put(guide.log_scale["log_variance"], math.log(0.05))


def _posterior_maps(start: Start, guide: AmortizedGuide, put) -> None:  # type: ignore[no-untyped-def]
    """Exact linear-Gaussian posterior of z_r, and of z_b with shifts along the responsive loadings projected out."""
    sd = start.variation.sd
    leading = np.minimum((start.variation.loadings**2).sum(axis=0) / sd**2, 0.9)
    precision = 1 / (sd**2 * (1 - leading))
    w_r, w_b = start.responsive * start.slope, start.background * start.slope
    within = (w_r * precision) @ w_r.T
    inverse = np.linalg.inv(within + np.eye(len(w_r)))
    put(guide.gain_responsive, (precision[:, None] * w_r.T) @ inverse)
    put(guide.log_scale_responsive, 0.5 * np.log(1 / np.diag(within + np.eye(len(w_r)))))
    # z_b must not move with a shift along the responsive loadings, however large: a flat prior on z_r does that
    p_wr = precision[:, None] * w_r.T
    project = np.linalg.pinv(within)
    against = (w_b * precision) - (w_b @ p_wr) @ project @ p_wr.T  # (background, genes)
    lambda_b = against @ w_b.T + np.eye(len(w_b))
    put(guide.gain_background, np.linalg.solve(lambda_b, against).T)
    put(guide.log_scale_background, -0.5 * np.log(np.diag(lambda_b)))


def _effects(start: Start, story: Story, guide: AmortizedGuide, screen: Screen, put) -> None:  # type: ignore[no-untyped-def]
    """Effects, gates and, with combinations in training, composition, interactions and their width."""
    design = screen.design.astype(float)
    combined = (design != 0).sum(axis=1) >= 2
    composition = _composition_start(story.model.composition, design, start)
    factor = composition.factor(start.scores, design)
    weight = np.where(combined, 1 / (start.score_sd**2 + 0.25 * np.mean(start.scale**2)), 1 / start.score_sd**2)
    rows = design * factor[:, None]
    single = (design != 0).sum(axis=1) == 1
    weight[single & (np.abs(design).sum(axis=1) > 0)] *= 1e3  # where a single was measured it speaks for itself
    weight[~combined & ~single] = 0
    gram = (rows * weight[:, None]).T @ rows + 1e-6 * np.eye(design.shape[1]) * weight.max(initial=1.0)
    w = np.linalg.solve(gram, (rows * weight[:, None]).T @ start.scores)
    cells_of = np.array([start.score_sd[design[:, p] != 0].min(initial=1.0) for p in range(design.shape[1])])
    probability, rate = spike_slab_fit(w, cells_of**2)
    if "gates" in guide.logits:
        probability = np.clip(probability, 0.02, 0.999)
        put(guide.logits["gates"], np.log(probability / (1 - probability)))
        put(guide.loc["inclusion"], np.log(rate / (1 - rate)))
        slab = np.where(probability > 0.3, w / np.maximum(probability, 0.3), w)
        put(guide.loc["effects"], slab)
        put(story.effect_scale, start.scale / np.sqrt(rate))
    else:
        put(guide.loc["effects"], w)
    put(guide.log_scale["effects"], np.log(np.broadcast_to(cells_of[:, None], w.shape)))
    put(guide.loc["effect_scale"], np.log(story.effect_scale.numpy()))
    put(guide.log_scale["effect_scale"], math.log(0.05))
    for name, value in composition.values.items():
        if name in guide.loc:
            put(guide.loc[name], math.log(value))
    for name in ("composition_scale", "capacity", "kappa"):
        if name in guide.loc:
            spread = {"composition_scale": "scale_spread", "capacity": "capacity_spread", "kappa": "width_spread"}[name]
            part = story.model.interaction if name == "kappa" else story.model.composition
            prior = getattr(part, spread)
            # without combinations in training the posterior is the prior; with them it starts narrower
            put(guide.log_scale[name], math.log(prior if not combined.any() else max(prior / 3, 1e-3)))
            if name == "kappa":
                put(guide.loc[name], math.log(max(story.model.interaction.width, 1e-6)))
    if combined.any():
        put(guide.combination_loc, start.scores[combined])
        put(guide.combination_log_scale, np.log(np.broadcast_to(start.score_sd[combined][:, None], (combined.sum(), start.rank))))
        mean = (factor[:, None] * (design @ w))[combined]
        h2 = (story.model.interaction.floor * story.effect_scale.numpy()) ** 2 + design[combined] ** 2 @ w**2
        ratio = ((start.scores[combined] - mean) ** 2 / h2).mean(axis=0)
        put(guide.loc["kappa"], 0.5 * np.log(np.maximum(0.5 * ratio + 0.5 * ratio.mean(), 1e-6)))


@dataclass(frozen=True, eq=False)
class _Composition:
    """Start of the composition: site values, and its factor for each condition given singles' scores."""

    kind: object
    values: dict[str, float]
    unit: float

    def factor(self, scores: Array, design: Array) -> Array:
        """Factor (conditions,) in front of the sum of effects; 1 for singles and control."""
        return _factor(self.kind, self.values, scores, design, self.unit)


def _factor(kind: object, values: dict[str, float], scores: Array, design: Array, unit: float) -> Array:
    combined = (design != 0).sum(axis=1) >= 2
    factor = np.full(len(design), values.get("composition_scale", 1.0))
    if "capacity" in values:
        lengths = np.abs(design) * unit * np.linalg.norm(_single_scores(scores, design), axis=1)
        pairs = 0.5 * (lengths.sum(axis=1) ** 2 - (lengths**2).sum(axis=1))
        factor = factor / np.sqrt(1 + pairs / values["capacity"] ** 2)
    return np.where(combined, factor, 1.0)


def _single_scores(scores: Array, design: Array) -> Array:
    """Shift of each target at dose 1 (targets, latents) from its own single-target conditions; zero where there is none."""
    single = (design != 0).sum(axis=1) == 1
    weight = np.abs(design) * single[:, None]
    dose = (np.abs(design) ** 2 * single[:, None]).sum(axis=0)
    return np.asarray((weight.T @ scores) / np.maximum(dose, 1e-9)[:, None])


def _composition_start(kind: object, design: Array, start: Start) -> _Composition:
    """Prior centres, or with combinations in training the least-squares fit to their shifts."""
    values: dict[str, float] = {}
    if isinstance(kind, (Additive, Saturating)) and kind.scale_spread > 0:
        values["composition_scale"] = kind.scale
    elif isinstance(kind, (Additive, Saturating)):
        values["composition_scale"] = kind.scale
    if isinstance(kind, Saturating):
        values["capacity"] = kind.capacity
    singles = _single_scores(start.scores, design)
    known = np.abs(singles).sum(axis=1) > 0
    both = ((design != 0).sum(axis=1) >= 2) & ~(design[:, ~known] != 0).any(axis=1)
    free = [name for name, spread in (("composition_scale", "scale_spread"), ("capacity", "capacity_spread"))
            if name in values and getattr(kind, spread, 0) > 0]  # fmt: skip
    if both.sum() >= 3 and free:
        centres = np.log([values[n] for n in free])
        total = (design @ singles)[both]
        truth = start.scores[both]

        def loss(log_values: Array) -> float:
            tried = {**values, **dict(zip(free, np.exp(log_values), strict=True))}
            f = _factor(kind, tried, start.scores, design, start.unit)[both]
            gap = ((truth - f[:, None] * total) ** 2).sum() / max((truth**2).sum(), 1e-9)
            return float(gap * both.sum() + 0.05 * ((log_values - centres) ** 2).sum())

        best = optimize.minimize(loss, centres, method="Nelder-Mead", options={"maxiter": 400})
        values |= dict(zip(free, np.exp(best.x).tolist(), strict=True))
    return _Composition(kind, values, start.unit)


__all__ = ["RESPONSIVE_SHARE", "NegativeBinomial", "Start", "apply_start", "closed_form"]
