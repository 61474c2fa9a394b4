"""Writing the closed-form start into story and guide: loadings, linear posterior maps, effects, composition (design 3.1, 3.7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from ..guides import AmortizedGuide
from ..screen import Screen
from ..story import Additive, Saturating, Story
from .rotation import spike_slab_fit
from .warm_start import Start

Array = NDArray[np.float64]


@torch.no_grad()
def apply_start(start: Start, story: Story, guide: AmortizedGuide, screen: Screen) -> None:
    """Write the start into story and guide, in place."""

    def put(target: Tensor, value: object) -> None:
        target.copy_(torch.as_tensor(np.array(value), dtype=target.dtype))

    put(story.unit, start.unit)
    put(story.effect_scale, start.scale)
    put(story.noise_start, start.noise)
    put(story.spread, start.outside)
    put(story.level, start.level)
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
    precision = 1 / (sd**2 * (1 - start.variation.common))
    w_r, w_b = start.responsive * start.slope, start.background * start.slope
    within = (w_r * precision) @ w_r.T
    inverse = np.linalg.inv(within + np.eye(len(w_r)))
    put(guide.gain_responsive, (precision[:, None] * w_r.T) @ inverse)
    put(guide.log_scale_responsive, 0.5 * np.log(1 / np.diag(within + np.eye(len(w_r)))))
    blind, _ = np.linalg.qr((w_r / sd).T)
    put(guide.blind, blind.T)
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
    sampling = (start.score_sd**2).mean(axis=1)
    weight = np.where(combined, 1 / (sampling + 0.25 * np.mean(start.scale**2)), 1 / sampling)
    rows = design * factor[:, None]
    single = (design != 0).sum(axis=1) == 1
    weight[single & (np.abs(design).sum(axis=1) > 0)] *= (
        1e3  # where a single was measured it speaks for itself
    )
    weight[~combined & ~single] = 0
    gram = (rows * weight[:, None]).T @ rows + 1e-6 * np.eye(design.shape[1]) * weight.max(initial=1.0)
    w = np.linalg.solve(gram, (rows * weight[:, None]).T @ start.scores)
    sd_of = np.stack([start.score_sd[design[:, p] != 0].min(axis=0) for p in range(design.shape[1])])
    probability, rate = spike_slab_fit(w, sd_of**2)
    if "gates" in guide.logits:
        probability = np.clip(probability, 0.02, 0.999)
        put(guide.logits["gates"], np.log(probability / (1 - probability)))
        put(guide.loc["inclusion"], np.log(rate / (1 - rate)))
        slab = np.where(probability > 0.3, w / np.maximum(probability, 0.3), w)
        put(guide.loc["effects"], slab)
        put(story.effect_scale, start.scale / np.sqrt(rate))
    else:
        put(guide.loc["effects"], w)
    put(guide.log_scale["effects"], np.log(sd_of))
    put(guide.loc["effect_scale"], np.log(story.effect_scale.numpy()))
    put(guide.log_scale["effect_scale"], math.log(0.05))
    for name, value in composition.values.items():
        if name in guide.loc:
            put(guide.loc[name], math.log(value))
    for name in ("composition_scale", "capacity", "kappa"):
        if name in guide.loc:
            spread = {
                "composition_scale": "scale_spread",
                "capacity": "capacity_spread",
                "kappa": "width_spread",
            }[name]
            part = story.model.interaction if name == "kappa" else story.model.composition
            prior = getattr(part, spread)
            # without combinations in training the posterior is the prior; with them it starts narrower
            narrower = max(prior / 3, min(prior, 1e-3)) if combined.any() else prior
            put(guide.log_scale[name], math.log(max(narrower, 1e-6)))
            if name == "kappa":
                put(guide.loc[name], math.log(max(story.model.interaction.width, 1e-6)))
    if combined.any():
        put(guide.combination_loc, start.scores[combined])
        put(guide.combination_log_scale, np.log(start.score_sd[combined]))
        mean = (factor[:, None] * (design @ w))[combined]
        h2 = (story.model.interaction.floor * story.effect_scale.numpy()) ** 2 + design[combined] ** 2 @ w**2
        ratio = ((start.scores[combined] - mean) ** 2 / h2).mean(axis=0)
        if "kappa" in guide.loc:
            put(guide.loc["kappa"], 0.5 * np.log(np.maximum(0.5 * ratio + 0.5 * ratio.mean(), 1e-6)))


@dataclass(frozen=True, eq=False)
class _Composition:
    """Start of the composition: site values, and its factor for each condition given singles' scores."""

    kind: object
    values: dict[str, float]
    unit: Array

    def factor(self, scores: Array, design: Array) -> Array:
        """Factor (conditions,) in front of the sum of effects; 1 for singles and control."""
        return _factor(self.kind, self.values, scores, design, self.unit)


def _factor(kind: object, values: dict[str, float], scores: Array, design: Array, unit: Array) -> Array:
    combined = (design != 0).sum(axis=1) >= 2
    factor = np.full(len(design), values.get("composition_scale", 1.0))
    if "capacity" in values:
        lengths = np.abs(design) * np.linalg.norm(unit * _single_scores(scores, design), axis=1)
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
    if isinstance(kind, (Additive, Saturating)):
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
