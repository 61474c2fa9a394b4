"""Joint posterior draws of the globals, shared by every condition that is asked for (design 2, prediction rule)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
    """What latents do to the predictor once the graph is multiplied out, for `draws` draws of the globals.

    Everything is a combination of the decoder's `loadings` (background + latents, genes), so that no draw needs its own:
    carry (draws, latents, latents) = (I - L)^{-T}; mix (draws, background, background + latents): what independent standard
    normals do to control backgrounds; base and base_variance (draws, genes) of the predictor over these, batches apart.
    offset (draws, latents, genes): what a draw adds to the responsive loadings, where they are drawn.
    """

    loadings: Tensor
    carry: Tensor
    mix: Tensor
    base: Tensor
    base_variance: Tensor
    offset: Tensor | None = None

    @property
    def responsive(self) -> Tensor:
        """(I - L)^{-T} W_r, (draws, latents, genes)."""
        return _decoded(self.carry, self._own, self.offset)

    @property
    def programs(self) -> Tensor:
        """Loadings of the independent standard normals, (draws, background, genes)."""
        return _decoded(self.mix, self.loadings, self.offset)

    def programs_at(self, columns: Tensor) -> Tensor:
        """The same of some genes only."""
        return _decoded(self.mix, self.loadings[:, columns], None if self.offset is None else self.offset[..., columns])

    def shifted(self, shift: Tensor) -> Tensor:
        """What shifts (draws, latents) do to the predictor, (draws, genes)."""
        return _decoded((shift.unsqueeze(-2) @ self.carry).squeeze(-2), self._own, self.offset)

    def spread(self, v: Tensor) -> Tensor:
        """Variance (draws, genes) that noise of variance v (draws, latents) makes: sum_k v_k responsive_k^2, by products of
        two loadings, whose weights are few numbers a draw, unless each draw has its own."""
        if self.offset is not None:
            return (v.unsqueeze(-2) @ self._squares).squeeze(-2)
        weight = (self.carry.mT * v.unsqueeze(-2)) @ self.carry
        first, second = self._pairs
        return (weight[:, first, second] * torch.where(first == second, 1.0, 2.0)) @ self._products

    def common(self, noise: Tensor) -> Tensor:
        """What standard normals (draws, background) do to the predictor, (draws, genes)."""
        return _decoded((noise.unsqueeze(-2) @ self.mix).squeeze(-2), self.loadings, self.offset)

    def cells(self, latents: Tensor, number: int) -> Tensor:
        """The predictor (cells, genes) of latents (cells, background + latents) in one draw."""
        return _decoded(latents, self.loadings, None if self.offset is None else self.offset[number])

    @property
    def _own(self) -> Tensor:
        return self.loadings[-self.carry.shape[-1] :]

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        n = self.carry.shape[-1]
        first, second = torch.triu_indices(n, n)
        return first, second

    @cached_property
    def _squares(self) -> Tensor:
        return self.responsive.square()

    @cached_property
    def _products(self) -> Tensor:
        first, second = self._pairs
        return self._own[first] * self._own[second]


@dataclass(frozen=True, eq=False)
class GlobalDraw:
    """One joint draw, with what predictions need of it.

    shared: the story's shared values, effects and log_variance in the order of the asked-for targets; z_mean (background,)
    and root (background, background): mean of the control cells' backgrounds and Cholesky factor of their covariance;
    batch_share (batches,); trained shifts and residuals of the training combinations.
    """

    shared: dict[str, Any]
    z_mean: Tensor
    root: Tensor
    batch_share: Tensor
    trained_shift: Tensor
    trained_residual: Tensor


def _decoded(latents: Tensor, loadings: Tensor, offset: Tensor | None) -> Tensor:
    """latents (.., n) times loadings (n, genes), of which the last rows are the responsive ones that have an `offset`: of each
    draw where that has a leading dimension of draws."""
    out = latents @ loadings
    if offset is None:
        return out
    own = latents[..., -offset.shape[-2] :]
    return out + (own @ offset if own.dim() == offset.dim() else (own.unsqueeze(-2) @ offset).squeeze(-2))


def push(
    story: Story, z_mean: Tensor, root: Tensor, graph: Tensor, coupling: Tensor, offset: Tensor | None = None
) -> Pushed:
    """Multiply L (draws, latents, latents) and B (draws, background, latents) out; `offset` (draws, latents, genes)."""
    n = story.n_latents
    loadings = torch.cat([story.decoder.background, story.decoder.responsive])
    carry = carried(torch.eye(n, dtype=loadings.dtype).expand(len(z_mean), n, n), graph, story.order)
    identity = torch.eye(z_mean.shape[-1], dtype=loadings.dtype).expand(len(z_mean), -1, -1)
    background = torch.cat([identity, coupling @ carry], -1)  # W_b + B (I - L)^{-T} W_r
    mix = root.mT @ background
    base = _decoded((z_mean.unsqueeze(-2) @ background).squeeze(-2), loadings, offset)
    parts = mix.split(16)
    own: Sequence[Tensor | None] = [None] * len(parts) if offset is None else offset.split(16)
    variance = torch.cat([_decoded(part, loadings, one).square().sum(-2) for part, one in zip(parts, own, strict=True)])
    return Pushed(loadings, carry, mix, base, variance, offset)


def push_draws(story: Story, draws: Sequence[GlobalDraw], design: Tensor) -> Pushed:
    """Of every draw for one condition (1, targets), whose targets are those of `shared`."""
    edges = [story.edges(d.shared, design) for d in draws]
    # either may not depend on the condition and then has no leading one
    graph, coupling = (torch.stack([e[n].reshape(e[n].shape[-2:]) for e in edges]) for n in ("graph", "coupling"))
    offset = torch.stack([d.shared["loadings"] for d in draws]) if "loadings" in draws[0].shared else None
    return push(story, torch.stack([d.z_mean for d in draws]), torch.stack([d.root for d in draws]), graph, coupling, offset)


def graph_varies(story: Story, draws: Sequence[GlobalDraw], design: Tensor) -> bool:
    """Whether the graph depends on the condition; design (1, targets) of any."""
    edges = story.edges(draws[0].shared, design)
    return edges["graph"].dim() > 2 or edges["coupling"].dim() > 2


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
            if n_new_targets:
                torch.manual_seed(draw_seed(seed, number, 1))
                shared = _with_new_targets(guide, values, n_new_targets)
            out.append(
                GlobalDraw(
                    shared=shared,
                    z_mean=z_mean,
                    root=root,
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
