"""Scalar functions of the globals and the data, named before the first simulation was run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pvae_pyro.guides import AmortizedGuide
from pvae_pyro.screen import Screen
from pvae_pyro.story import Story
from pvae_pyro.story.latents import carried

from .world import CELLS, RESPONSIVE, TARGETS, UNSEEN, UNTRAINED


def values(
    story: Story, guide: AmortizedGuide, sites: dict[str, Tensor], eta: dict[str, Tensor], screen: Screen
) -> dict[str, float]:
    """Every quantity at these site values; `eta`: standard normals of the unseen pair (interaction, stretch, surprise)."""
    g = guide.assemble(sites)
    with poutine.block(), poutine.condition(data=sites):
        shared = story.shared()
    w, part = g.effects, story.model.interaction
    unseen = torch.zeros(1, len(TARGETS))
    for name in UNSEEN.split("+"):
        unseen[0, TARGETS.index(name)] = 1.0
    composed = story.compose(shared, unseen)[0]
    width = part.latent_width(shared["kappa"], story.typical, unseen, w)[0]
    surprise = (part.surprise_spread * eta["surprise"]).exp()
    pair = composed * (1 + part.stretch * eta["stretch"]) + surprise * width * eta["interaction"]
    pushed = carried(story.decoder.responsive, g.graph, story.order)
    first = story.combinations[0]
    return {name: float(value) for name, value in {
        "norm of w": w.norm(),
        "norm of w of one target": w[0].norm(),
        "an effect": w[0, 0],
        "largest effect": w.abs().max(),
        "open gates": sites["gates"].sum(),
        "inclusion rate": sites["inclusion"].mean(),
        "activity of a target": sites["activity"][0],
        "acting targets": sites["acting"],
        "size of effects": sites["effect_scale"].mean(),
        "kappa of one latent": shared["kappa"][0],
        "mean kappa": shared["kappa"].mean(),
        "scale of composition": shared["composition"]["scale"],
        "noise variance of a gene": g.noise[0].square(),
        "mean noise variance": g.noise.square().mean(),
        "an edge": g.graph[1, 0],
        "norm of edges": g.graph.norm(),
        "norm of B": g.coupling.norm(),
        "noise modulation of a target": g.log_variance[0].mean(),
        "shift of a single, one gene": (w[0] @ pushed)[0],
        "shift of a trained pair, one gene": (g.shift[first] @ pushed + g.residual[first])[0],
        "norm of a trained pair's interaction": sites["interaction"][0].norm(),
        "shift of an unseen pair, one gene": (pair @ pushed)[0],
        "length of an unseen pair's shift": (pair @ pushed).norm(),
        "log likelihood": log_likelihood(story, g, screen),
    }.items()}  # fmt: skip


def log_likelihood(story: Story, g: Any, screen: Screen) -> float:
    """log p(all cells | globals), latents integrated out exactly: everything is linear and normal given the globals.

    By torch's law of every condition's cells: not by `inference.collapsed`, which the sampler that is judged uses.
    """
    x, condition = torch.as_tensor(screen.expression.toarray()).double(), torch.as_tensor(screen.condition)
    pushed = carried(story.decoder.responsive, g.graph, story.order).double()
    background = story.decoder.background.double() + g.coupling.double() @ pushed
    v = story.noise_variance(g.log_variance, story.design).double()
    total = 0.0
    for row in range(len(story.design)):
        centre = story.decoder.intercept[0].double() + g.shift[row].double() @ pushed + g.residual[row].double()
        cells = x[condition == row] - centre
        factors = torch.cat([background, v[row].sqrt().unsqueeze(1) * pushed]).T
        law = torch.distributions.LowRankMultivariateNormal(torch.zeros(x.shape[1]).double(), factors, g.noise.double().square())
        total += float(law.log_prob(cells).sum())
    return total


def unseen_pairs(story: Story, guide: AmortizedGuide, sites: dict[str, Tensor]) -> dict[str, Tensor]:
    """Latent mean, and pseudobulk of `CELLS` cells, of every pair that was not trained, (pairs, genes): what no cell has seen is
    drawn by the story's own rule, so that a truth and a posterior draw are drawn alike."""
    g = guide.assemble(sites)
    design = torch.zeros(len(UNTRAINED), len(TARGETS))
    for row, name in enumerate(UNTRAINED):
        design[row, [TARGETS.index(target) for target in name.split("+")]] = 1.0
    with poutine.block():
        with poutine.condition(data=sites):
            shared = story.shared()
        composed = story.compose(shared, design)
        eta, residual = story.interact(shared, design, composed)
    pushed = carried(story.decoder.responsive, g.graph, story.order)
    mean = story.decoder.intercept[0] + (composed + eta) @ pushed + residual
    background = story.decoder.background + g.coupling @ pushed
    own = story.noise_variance(g.log_variance, design).sqrt() * torch.randn(len(design), story.n_latents)
    noise = torch.randn(len(design), len(background)) @ background + own @ pushed + g.noise * torch.randn_like(mean)
    return {"latent mean": mean, f"pseudobulk of {CELLS} cells": mean + noise / CELLS**0.5}


def fresh(generator: np.random.Generator, latents: int = RESPONSIVE) -> dict[str, Tensor]:
    """Standard normals of what a pair does that no cell has seen."""
    draw = torch.as_tensor(generator.standard_normal(latents + 2), dtype=torch.float32)
    return {"interaction": draw[:latents], "stretch": draw[latents], "surprise": draw[latents + 1]}
