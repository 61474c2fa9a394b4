"""Joint posterior draws of the globals, shared by every condition that is asked for (design 2, prediction rule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..guides import AmortizedGuide
from ..story import Story
from ..story.latents import carried


@dataclass(frozen=True, eq=False)
class Pushed:
    """What latents do to the predictor once the graph is multiplied out, perhaps with a leading dimension of draws.

    responsive (latents, genes) = (I - L)^{-T} W_r; programs (background, genes): what independent standard normals do to the
    predictor of control backgrounds; base and base_variance (genes,) of the predictor over these, batches apart.
    """

    responsive: Tensor
    programs: Tensor
    base: Tensor
    base_variance: Tensor


@dataclass(frozen=True, eq=False)
class GlobalDraw:
    """One joint draw, with what predictions need of it.

    shared: the story's shared values, effects and log_variance in the order of the asked-for targets; z_mean (background,)
    and root (background, background): mean of the control cells' backgrounds and Cholesky factor of their covariance;
    pushed: for the graph that all conditions share, None where the graph depends on the condition; batch_share (batches,);
    trained shifts and residuals of the training combinations.
    """

    shared: dict[str, Any]
    z_mean: Tensor
    root: Tensor
    pushed: Pushed | None
    batch_share: Tensor
    trained_shift: Tensor
    trained_residual: Tensor


def push(story: Story, z_mean: Tensor, root: Tensor, graph: Tensor, coupling: Tensor) -> Pushed:
    """Multiply L (latents, latents) and B (background, latents) out; any of the four may have leading draws."""
    responsive = carried(story.decoder.responsive, graph, story.order)
    background = story.decoder.background + coupling @ responsive
    programs = root.mT @ background
    base = (z_mean.unsqueeze(-2) @ background).squeeze(-2)
    return Pushed(responsive, programs, base, programs.square().sum(-2))


def push_draws(story: Story, draws: Sequence[GlobalDraw], design: Tensor) -> list[Pushed]:
    """Of every draw for one condition (1, targets), whose targets are those of `shared`; one batch, since draws are many."""
    shared = [d.pushed for d in draws if d.pushed is not None]
    if len(shared) == len(draws):
        return shared
    edges = [story.edges(d.shared, design) for d in draws]
    # either may not depend on the condition and then has no leading one
    graph, coupling = (torch.stack([e[n].reshape(e[n].shape[-2:]) for e in edges]) for n in ("graph", "coupling"))
    all_ = push(story, torch.stack([d.z_mean for d in draws]), torch.stack([d.root for d in draws]), graph, coupling)
    parts = zip(all_.responsive, all_.programs, all_.base, all_.base_variance, strict=True)
    return [Pushed(*part) for part in parts]


@torch.no_grad()
def draw_globals(
    guide: AmortizedGuide,
    controls: tuple[Tensor, Tensor],
    batch_counts: Tensor,
    n_new_targets: int,
    draws: int,
    seed: int,
) -> list[GlobalDraw]:
    """`draws` joint draws. `controls`: location and scale of q(z_b | x) of the control cells; they are reweighted by a Bayesian
    bootstrap in every draw, as are the batches (`batch_counts` training cells each). `n_new_targets` targets that no
    condition trained follow the trained ones, their effects drawn from the prior under the draw's own hyperparameters.
    """
    story = guide.story
    loc, scale = controls
    out = []
    # argument checks would cost as much as the draws themselves
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        for number in range(draws):
            # one seed a draw and one for its new targets: asking for an untrained target must not move the others
            torch.manual_seed(draw_seed(seed, number, 0))
            with poutine.block():
                values = guide.sample_globals()
            g = guide.assemble(values)
            weight = torch.distributions.Exponential(torch.ones(len(loc), dtype=loc.dtype)).sample()
            weight = weight / weight.sum()
            share = torch.distributions.Gamma(batch_counts, torch.ones_like(batch_counts)).sample()
            share = share / share.sum()
            z_mean = weight @ loc
            centred = loc - z_mean
            covariance = (centred * weight.unsqueeze(1)).T @ centred + torch.diag(weight @ scale.square())
            root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(covariance)))
            with poutine.block(), poutine.condition(data=values):
                shared = story.shared()
            edges = story.edges(shared, story.design[:1])
            varies = edges["graph"].dim() > 2 or edges["coupling"].dim() > 2
            if n_new_targets:
                torch.manual_seed(draw_seed(seed, number, 1))
                shared = _with_new_targets(guide, values, n_new_targets)
            out.append(
                GlobalDraw(
                    shared=shared,
                    z_mean=z_mean,
                    root=root,
                    pushed=None if varies else push(story, z_mean, root, **edges),
                    batch_share=share,
                    trained_shift=g.shift[story.combinations],
                    trained_residual=g.residual[story.combinations],
                )
            )
    return out


@torch.no_grad()
def draw_shared(guide: AmortizedGuide, draws: int, seed: int) -> list[dict[str, Any]]:
    """The story's shared values in the draws that `draw_globals` makes with this seed."""
    out = []
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        for number in range(draws):
            torch.manual_seed(draw_seed(seed, number, 0))
            with poutine.block():
                values = guide.sample_globals()
            with poutine.block(), poutine.condition(data=values):
                out.append(guide.story.shared())
    return out


def _with_new_targets(guide: AmortizedGuide, values: dict[str, Tensor], n: int) -> dict[str, Any]:
    """The story's shared values with `n` further targets, drawn from the prior given this draw's hyperparameters."""
    story, design = guide.story, guide.story.design
    own = {name: site.event_dim for name, site in guide.family.sites.items() if any(f.name == "targets" for f in site.plates)}
    kept = {name: value for name, value in values.items() if name not in own}
    try:
        story.design = torch.zeros(1, n, dtype=design.dtype, device=design.device)
        with poutine.block(), poutine.trace() as new, poutine.condition(data=kept):
            story.shared()
        nodes: dict[str, Any] = new.trace.nodes
        for name, event_dim in own.items():  # the plate of targets is dimension -2
            kept[name] = torch.cat([values[name], nodes[name]["value"]], dim=-2 - event_dim)
        story.design = torch.zeros(1, design.shape[1] + n, dtype=design.dtype, device=design.device)
        with poutine.block(), poutine.condition(data=kept):
            return story.shared()
    finally:
        story.design = design


def draw_seed(seed: int, number: int, purpose: int) -> int:
    """A seed of one draw and purpose: 0 its globals, 1 targets never trained, 2 cells of a prior, 3 loadings of a plan."""
    return int(
        np.random.SeedSequence([seed, number, purpose]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
