"""Start of the effects at closed-form shifts, whatever prior they have."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor

from ..guides.family import Family
from ..story import Story

STEPS = 400


def start_effects(story: Story, family: Family, w: Tensor, sd: Tensor) -> None:
    """Put the sites of the effect prior where they make w (targets, latents), with the shifts' sampling sd.

    A prior with a method `start(w, sd, scale) -> (sites, scale)` says how itself: values and unconstrained sds by site, and the
    size of effects (latents,) that its `sample` is given from here on. For any other the sites of targets are fitted to w by
    gradient from the centre of the prior.
    """
    part = story.model.effects
    ready = getattr(part, "start", None)
    if ready is not None:
        sites, scale = ready(w, sd, story.effect_scale)
        story.effect_scale.copy_(scale)
        for name, (value, spread) in sites.items():
            family.place(name, value, spread)
        return
    _fit_sites(story, family, w, sd)


def _fit_sites(story: Story, family: Family, w: Tensor, sd: Tensor) -> None:
    plates = story.plates()
    mine = {name for name, site in family.sites.items() if any(f.name == "targets" for f in site.plates)}
    mine &= _sites_of_effects(story)
    fixed = {name: value.detach() for name, value in family.centre().items() if name not in mine}
    raw = {name: family.loc[name].detach().clone() for name in mine if name in family.loc}
    raw |= {name: family.logits[name].detach().clone() for name in mine if name in family.logits}
    begun = {name: value.clone() for name, value in raw.items()}
    size = w.square().mean().clamp_min(1e-12)

    def made() -> Tensor:
        values = dict(fixed)
        for name, u in raw.items():
            support = family.sites[name].support
            values[name] = torch.sigmoid(u) if support is None else support(u)
        with poutine.block(), poutine.condition(data=values):
            return story.model.effects.sample(plates, story.effect_scale)

    with torch.enable_grad():
        for u in raw.values():
            # a product of sites has no gradient at zero: leave it towards w
            u += 1e-3 * w.sign() if u.shape == w.shape else 0.0
            u.requires_grad_()
        optimiser = torch.optim.Adam(list(raw.values()), lr=0.05)
        for _ in range(STEPS):
            optimiser.zero_grad()
            stay = sum((raw[n] - begun[n]).square().mean() for n in raw)
            loss = (made() - w).square().mean() / size + 1e-4 * stay
            loss.backward()
            optimiser.step()
        slopes = torch.autograd.grad(made().sum(), list(raw.values()), allow_unused=True)
    for (name, u), slope in zip(raw.items(), slopes, strict=True):
        site = family.sites[name]
        if site.support is None:
            family.place(name, torch.sigmoid(u.detach()))
            continue
        spread = None
        if slope is not None and u.shape == sd.shape:  # delta method, site by site
            spread = (sd / slope.abs().clamp_min(1e-3)).clamp(1e-3, 1.0)
        family.place(name, site.support(u.detach()), spread)


def _sites_of_effects(story: Story) -> set[str]:
    with torch.no_grad(), poutine.block(), poutine.trace() as trace:
        story.model.effects.sample(story.plates(), story.effect_scale)
    return {name for name, node in trace.trace.nodes.items() if node["type"] == "sample"}
