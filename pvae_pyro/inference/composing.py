"""Start of a composition: its most probable sites given closed-form shifts of the training combinations (design 3.7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..guides.sites import Site, read_sites
from ..story import Story

FEWEST = 3  # combinations of measured singles below which the prior says more than they do
LARGEST = 64  # unknowns up to which posterior sds are read off the curvature


@dataclass(frozen=True, eq=False)
class ComposedStart:
    """Site values with their sds on the unconstrained scale (None: as the prior has it), and what `compose` makes of them."""

    sites: dict[str, tuple[Tensor, Tensor | None]]
    values: dict[str, Any]
    learnt: bool

    def compose(self, story: Story, design: Tensor, effects: Tensor) -> Tensor:
        """Mean effect (conditions, latents)."""
        return story.model.composition.compose(self.values, design, effects, story.unit)


def start_composition(
    story: Story, singles: Tensor, design: Tensor, shifts: Tensor
) -> ComposedStart:
    """Posterior mode on the unconstrained scale, singles' effects held fixed.

    singles (targets, latents); design (combinations, targets) and shifts (combinations, latents) of the combinations whose
    targets were all measured alone. Misfits weigh alike in all latents: weighing them by their width would let the many small,
    noisy effects pull the scale towards zero. Too few combinations leave every site at its prior.
    """
    sites = [site for site in composition_sites(story) if not site.is_gate]
    u = [_inverse(site) for site in sites]
    if not sites or len(design) < FEWEST:
        values, _ = _stated(story, sites, u)
        return ComposedStart({}, values, False)
    def misfit(u: list[Tensor]) -> tuple[Tensor, Tensor]:
        values, log_prior = _stated(story, sites, u)
        made = story.model.composition.compose(values, design, singles, story.unit)
        return (shifts - made).square(), log_prior

    def energy(u: list[Tensor], weight: Tensor) -> Tensor:
        square, log_prior = misfit(u)
        return 0.5 * weight * square.sum() - log_prior

    weight = _precision(shifts.square())
    for _ in range(3):
        u = _minimise(partial(energy, weight=weight), u)
        with torch.no_grad():
            weight = _precision(misfit(u)[0])
    sd = _curvature(partial(energy, weight=weight), u)
    values, _ = _stated(story, sites, u)
    placed = {site.name: (_forward(site, one), spread) for site, one, spread in zip(sites, u, sd, strict=True)}
    return ComposedStart(placed, values, True)


def _precision(square: Tensor) -> Tensor:
    """One over the variance of misfits (combinations, latents), times the number of latents that share it over all of them."""
    by_latent = square.mean(0)
    effective = by_latent.sum().square() / by_latent.square().sum().clamp_min(1e-12)
    return effective / by_latent.sum().clamp_min(1e-12)


def composition_sites(story: Story) -> list[Site]:
    """Sites of the composition, in order."""
    return read_sites(lambda: story.model.composition.sample(story.plates(), story.effect_scale))


def _inverse(site: Site) -> Tensor:
    assert site.support is not None
    return site.support.inv(site.centre).clone()


def _forward(site: Site, u: Tensor) -> Tensor:
    assert site.support is not None
    return site.support(u.detach())


def _stated(story: Story, sites: list[Site], u: list[Tensor]) -> tuple[dict[str, Any], Tensor]:
    """Values that `compose` needs at these unconstrained sites, and their log prior density there."""
    data, log_jacobian = {}, torch.zeros(())
    for site, one in zip(sites, u, strict=True):
        assert site.support is not None
        data[site.name] = site.support(one)
        log_jacobian = log_jacobian + site.support.log_abs_det_jacobian(one, data[site.name]).sum()
    with poutine.block(), poutine.trace() as trace, poutine.condition(data=data):
        values = story.model.composition.sample(story.plates(), story.effect_scale)
    return values, trace.trace.log_prob_sum(lambda name, node: name in data) + log_jacobian


def _minimise(energy: Any, start: list[Tensor]) -> list[Tensor]:
    u = [one.detach().clone().requires_grad_() for one in start]
    optimiser = torch.optim.LBFGS(u, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = energy(u)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return [one.detach() for one in u]


def _curvature(energy: Any, u: list[Tensor]) -> list[Tensor | None]:
    """Posterior sds of each unknown from the inverse Hessian; None where there are too many unknowns."""
    sizes = [one.numel() for one in u]
    if sum(sizes) > LARGEST:
        return [None] * len(u)

    def flat(v: Tensor) -> Tensor:
        pieces = torch.split(v, sizes)
        out: Tensor = energy([p.reshape(one.shape) for p, one in zip(pieces, u, strict=True)])
        return out

    with torch.enable_grad():
        hessian = torch.autograd.functional.hessian(flat, torch.cat([one.reshape(-1) for one in u]))
    values, vectors = torch.linalg.eigh(hessian)
    variance = (vectors.square() / values.clamp_min(1e-2)).sum(1)
    return [v.sqrt().reshape(one.shape) for v, one in zip(torch.split(variance, sizes), u, strict=True)]
