"""Writing the closed-form start into story and guide: loadings, linear posterior maps, effects, composition (design 3.1, 3.7)."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from ..guides import AmortizedGuide
from ..story import Story
from .composing import WEIGHTS, ComposedStart, Shifts, composition_sites, start_composition
from .effect_start import start_effects
from .loading_law import loading_law
from .responding import of_responding
from .surplus import outside_unit
from .warm_start import Start

log = logging.getLogger("pvae_pyro")


@torch.no_grad()
def apply_start(start: Start, story: Story, guide: AmortizedGuide) -> None:
    """Write the start into story and guide, in place."""

    def put(target: Tensor, value: object) -> None:
        target.copy_(torch.as_tensor(np.array(value), dtype=target.dtype))

    for name, (value, spread) in start.penetrance.items():
        guide.family.place(name, value, spread)
    rate = guide.assemble(guide.central_values()).rate
    start = of_responding(start, rate.double().numpy())
    put(story.unit, start.unit)
    put(story.effect_scale, start.scale)
    put(story.typical, start.scale)
    decoder = story.decoder
    put(decoder.responsive, start.responsive)
    put(decoder.background, start.background)
    if hasattr(story, "loadings_sd"):
        turn, sd = loading_law(start)
        put(story.loadings_turn, turn)
        put(story.loadings_sd, sd)
        # no SVI of these: their law says already what the trained conditions tell of loadings
        guide.family.place("loadings", sd=getattr(story.model.loadings, "width", 1.0) * story.loadings_sd)
        guide.family.hold("loadings")
    _levels(start, story, guide, put)
    _posterior_maps(start, guide, put)
    _combinations(start, story, guide, *_effects(start, story, guide), put)
    guide.family.place("coupling", sd=0.02)
    for name in getattr(story.model.graph, "at_prior", ()):
        guide.family.follow_prior(name)
    guide.family.place("log_variance", sd=0.05)


@torch.no_grad()
def random_start(start: Start, story: Story, guide: AmortizedGuide) -> None:
    """Levels, batch effects and noise of the cells, in place, and nothing of the perturbations: loadings, encoders and effects
    stay as they were drawn. Gates of effects begin undecided: one that is shut would hardly ever see a gradient."""

    def put(target: Tensor, value: object) -> None:
        target.copy_(torch.as_tensor(np.array(value), dtype=target.dtype))

    _levels(start, story, guide, put)
    if "gates" in guide.family.sites:
        guide.family.place("gates", torch.full_like(guide.family.logits["gates"], 0.5))


def _levels(start: Start, story: Story, guide: AmortizedGuide, put) -> None:  # type: ignore[no-untyped-def]
    """Level and noise of every gene, batch effects, and the unit that networks see genes in."""
    put(story.noise_start, start.noise)
    put(story.spread, start.outside)
    put(story.level, start.level)
    put(story.decoder.intercept, np.broadcast_to(start.intercept, story.decoder.intercept.shape))
    put(guide.centre, np.broadcast_to(start.centre, guide.centre.shape))
    put(guide.gene_sd, start.variation.sd)
    guide.family.place("noise", start.noise, np.full_like(start.noise, 1 / math.sqrt(2 * story.n_cells)))


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


def _effects(start: Start, story: Story, guide: AmortizedGuide) -> tuple[ComposedStart, Tensor]:
    """Effects and gates at the closed-form shifts; the composition that carries them on, and the conditions it was read off."""
    design, scores = story.design, torch.as_tensor(start.scores, dtype=story.unit.dtype)
    variance = torch.as_tensor(start.score_sd**2, dtype=story.unit.dtype)
    targets = (design != 0).sum(1)
    known = (design[targets == 1] != 0).any(0)
    measured = (targets >= 2) & ~(design[:, ~known] != 0).any(1)
    singles = _least_squares(design[targets == 1], scores[targets == 1], 1 / variance[targets == 1].mean(1))
    sampling = torch.stack([variance[design[:, p] != 0].min(0).values for p in range(design.shape[1])])
    means, spreads, common = _told_alone(singles[known], sampling[known], variance[targets == 0].amax(0))
    alone, doubt = torch.zeros_like(singles), torch.zeros_like(singles)
    alone[known], doubt[known] = means, spreads
    data = Shifts(alone, doubt, design[measured], scores[measured] - common, variance[measured])
    composition = start_composition(story, data)
    w = singles if bool(known.all()) else _with_unmeasured(story, composition, singles, scores, variance, known)
    start_effects(story, guide.family, w, sampling.sqrt())
    return composition, measured


def _told_alone(shifts: Tensor, sampling: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean and variance (targets, latents) of effects of these measured shifts, and what all shifts have in common by
    noise of the control (latents,), each latent by itself.

    y_p = w_p + noise_p - noise_0, noise of the control being one number for all: with it, or their own, left in, the scale
    of sums of effects would come out too small. sampling (targets, latents) and control (latents,) are variances.
    """
    square = shifts.square().mean(0)
    size = (square - sampling.mean(0) - control).maximum(0.02 * square).clamp_min(1e-12)
    eye = torch.eye(len(shifts), dtype=shifts.dtype)
    covariance = torch.diag_embed((size + sampling).T) + control.reshape(-1, 1, 1)
    solved = torch.linalg.solve(covariance, torch.cat([shifts.T.unsqueeze(-1), eye.expand(len(size), -1, -1)], -1))
    pull, inverse = solved[..., 0], solved[..., 1:]  # (latents, targets), (latents, targets, targets)
    variance = size - size.square() * inverse.diagonal(dim1=-2, dim2=-1).T
    return (size.unsqueeze(1) * pull).T, variance, -control * pull.sum(1)


def _least_squares(design: Tensor, shifts: Tensor, weight: Tensor) -> Tensor:
    """Effects (targets, latents) with design @ effects = shifts, weighted by rows; zero for targets without a row."""
    if not len(shifts):  # no target was measured alone
        return shifts.new_zeros(design.shape[1], shifts.shape[1])
    gram = (design * weight.unsqueeze(1)).T @ design
    ridge = 1e-6 * weight.max() * torch.eye(design.shape[1], dtype=design.dtype)
    return torch.linalg.solve(gram + ridge, (design * weight.unsqueeze(1)).T @ shifts)


def _with_unmeasured(
    story: Story, composition: ComposedStart, singles: Tensor, scores: Tensor, variance: Tensor, known: Tensor
) -> Tensor:
    """Effects of targets that were measured in combinations only, from what their partners leave of these shifts."""
    design = story.design
    combined = (design != 0).sum(1) >= 2
    total = design @ singles
    made = composition.compose(story, design, singles)
    factor = ((made * total).sum(1) / total.square().sum(1).clamp_min(1e-9)).clamp(0.2, 1.5)
    factor = torch.where(combined & (total.square().sum(1) > 1e-9), factor, torch.ones_like(factor))
    rows = combined & (design[:, ~known] != 0).any(1)
    left = scores[rows] / factor[rows].unsqueeze(1) - total[rows]
    weight = 1 / (variance[rows].mean(1) + 0.25 * story.typical.square().mean())
    w = singles.clone()
    w[~known] = _least_squares(design[rows][:, ~known], left, weight)
    return w


def _combinations(  # type: ignore[no-untyped-def]
    start: Start, story: Story, guide: AmortizedGuide, composition: ComposedStart, measured: Tensor, put
) -> None:
    """Composition, interactions and their width: at the prior without combinations, else where their shifts put them."""
    family, part = guide.family, story.model.interaction
    for site in composition_sites(story):
        family.follow_prior(site.name)
    family.follow_prior("kappa")
    for name, (value, sd) in composition.sites.items():
        family.place(name, value, sd)
    # SVI of these would widen intervals that are right: factors of w and of widths, weights and their scale are independent in
    # the guide. What no combination informs, weights included, stays at the prior
    learnt = composition.kappa is not None
    for name in ("kappa", *(site.name for site in composition_sites(story))):
        if not (learnt and name == WEIGHTS):
            family.hold(name)
    if composition.kappa is None and WEIGHTS in family.sites:
        log.info(
            "Too few combinations were trained to learn a rule for pairs: what they do beyond saturating addition "
            "is drawn from its prior."
        )
    rows = story.combinations
    if not rows:
        return
    put(guide.combination_loc, start.scores[rows])
    put(guide.combination_log_scale, np.log(start.score_sd[rows]))
    if composition.kappa is not None and composition.stretch is not None:
        guide.stretch_loc[measured[rows]] = composition.stretch
        guide.stretch_log_scale.fill_(math.log(max(0.5 * part.stretch * composition.stretch_unit, 1e-3)))
        family.place("kappa", *composition.kappa)
        put(story.stretch_unit, composition.stretch_unit)
        put(story.spread, outside_unit(start, np.flatnonzero(measured), part) * start.outside)
