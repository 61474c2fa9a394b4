"""Start of the effects at closed-form shifts, whatever prior they have."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..guides.family import Family
from ..guides.sites import Site
from ..story import Story

TIGHT = (1.0, 1e2, 1e4, 1e4, 1e4)  # weights of the shifts against the prior, one after the other until they are reproduced
NEAR = 0.02  # in sds of the shifts: no further than this is reproduced
WIDEST = 0.5  # sd on a transformed scale: twice that would make a log-normal's own sd three times that of the delta method


def start_effects(story: Story, family: Family, w: Tensor, sd: Tensor) -> None:
    """Put the sites of the effect prior where they make w (targets, latents), with the shifts' sampling sd.

    A prior with a method `start(w, sd, scale) -> (sites, scale)` says how itself: values and unconstrained sds by site, and the
    size of effects (latents,) that its `sample` is given from here on. For any other, the sites of targets go to the most
    probable values that make w; the sites they share keep the prior's centre, and move only where that fails.
    """
    part = story.model.effects
    ready = getattr(part, "start", None)
    if ready is not None:
        sites, scale = ready(w, sd, story.effect_scale)
        story.effect_scale.copy_(scale)
        for name, (value, spread) in sites.items():
            family.place(name, value, spread)
        return
    stated, w, sd = _Stated(story, family), w.double(), sd.double()
    if not stated.sites:
        return
    for name in stated.sites:
        family.follow_prior(name)
    own = [n for n, site in stated.sites.items() if any(f.name == "targets" for f in site.plates)]
    u = {name: w.clone() for name in own if stated.begun[name].shape == w.shape}
    if len(own) != 1 or not u or not torch.equal(stated.made(u), w):  # most priors have w itself for their only site
        u = stated.fit(own, w, sd)
        if len(own) < len(stated.sites) and stated.distance(u, w, sd) > NEAR:
            u = stated.fit(list(stated.sites), w, sd)
    u = stated.begun | u
    for name, spread in stated.spreads(u, sd, own).items():
        if name not in own and name in family.log_scale:  # a shared scale moves the effects of all its targets
            spread = torch.minimum(spread, family.log_scale[name].double().exp())
        family.place(name, stated.value(name, u[name]), spread)


class _Stated:
    """The statement of the effect prior as a function of its sites, each on the real line (gates: logits)."""

    def __init__(self, story: Story, family: Family) -> None:
        self.story, self.plates = story, story.plates()
        with torch.no_grad(), poutine.block(), poutine.trace() as trace:
            self._sample()
        names = [name for name, node in trace.trace.nodes.items() if node["type"] == "sample" and name in family.sites]
        self.sites: dict[str, Site] = {name: family.sites[name] for name in names}
        raw = {**family.loc, **family.logits}
        self.begun = {name: raw[name].detach().double() for name in names}  # a tight fit needs the digits
        self.unit = self._spread_of_prior()

    def _sample(self) -> Tensor:
        return self.story.model.effects.sample(self.plates, self.story.effect_scale.double())

    @torch.no_grad()
    def _spread_of_prior(self, draws: int = 64) -> dict[str, Tensor]:
        """Sd of each site on the real line under the prior, robustly; 1 for gates."""
        values: dict[str, list[Tensor]] = {name: [] for name in self.sites}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(draws):
                with poutine.block(), poutine.trace() as trace:
                    self._sample()
                for name, site in self.sites.items():
                    if site.support is not None:
                        values[name].append(site.support.inv(trace.trace.nodes[name]["value"]))
        out = {}
        for name, u in values.items():
            far = (torch.stack(u) - self.begun[name]).abs() if u else torch.ones(1, *self.begun[name].shape)
            out[name] = (1.5 * far.median(0).values).clamp_min(1e-6) if u else far[0]
        return out

    def value(self, name: str, u: Tensor) -> Tensor:
        """On the site's own scale; the probability of a gate."""
        support = self.sites[name].support
        return torch.sigmoid(u) if support is None else support(u)

    def made(self, u: dict[str, Tensor]) -> Tensor:
        """Effects (targets, latents) at these sites, the others at the prior's centre."""
        return self._run(u)[0]

    def distance(self, u: dict[str, Tensor], w: Tensor, sd: Tensor) -> float:
        """Largest distance from w, in sds."""
        with torch.no_grad():
            return float(((self.made(u) - w) / sd).abs().max())

    def _run(self, u: dict[str, Tensor]) -> tuple[Tensor, Any]:
        values = {name: self.value(name, one) for name, one in (self.begun | u).items()}
        with poutine.block(), poutine.trace() as trace, poutine.condition(data=values):
            w = self._sample()
        return w, trace.trace.nodes

    def _energy(self, u: dict[str, Tensor], w: Tensor, sd: Tensor, weight: float) -> Tensor:
        """Minus log posterior of these sites given w; gates by their divergence from the prior."""
        made, nodes = self._run(u)
        energy = 0.5 * weight * ((made - w) / sd).square().sum()
        for name, one in u.items():
            site, node = self.sites[name], nodes[name]
            if site.support is None:
                p = torch.distributions.Bernoulli(logits=one)
                energy = energy + torch.distributions.kl_divergence(p, torch.distributions.Bernoulli(node["fn"].probs)).sum()
            else:
                energy = energy - node["fn"].log_prob(node["value"]).sum()
                energy = energy - site.support.log_abs_det_jacobian(one, node["value"]).sum()
        return energy

    def fit(self, names: list[str], w: Tensor, sd: Tensor) -> dict[str, Tensor]:
        """Most probable values of these sites that make w, tightened by steps: a tight fit alone is a narrow valley."""
        v = [torch.zeros_like(self.begun[name]) for name in names]  # in units of the prior's spread
        for number, one in enumerate(v):
            # a product of sites has no gradient where all are zero: leave it, the first of them towards w
            one += 1e-3 * w.sign() if number == 0 and one.shape == w.shape else 1e-3

        def placed() -> dict[str, Tensor]:
            return {name: self.begun[name] + self.unit[name] * one for name, one in zip(names, v, strict=True)}

        for weight in TIGHT if names else ():
            if weight == TIGHT[-1] and self.distance(placed(), w, sd) < NEAR:
                break
            for one in v:
                one.requires_grad_()
            optimiser = torch.optim.LBFGS(v, max_iter=300, line_search_fn="strong_wolfe")

            def closure(weight: float = weight, optimiser: Any = optimiser) -> Tensor:
                optimiser.zero_grad()
                loss = self._energy(placed(), w, sd, weight)
                loss.backward()
                return loss

            with torch.enable_grad():
                optimiser.step(closure)
            v = [one.detach() for one in v]
        return placed()

    def spreads(self, u: dict[str, Tensor], sd: Tensor, own: list[str], probes: int = 16) -> dict[str, Tensor]:
        """Unconstrained sds with which the sites make effects of sd `sd`: delta method, equal shares of the variance to `own`."""
        free = {name: one.clone().requires_grad_() for name, one in u.items()}
        generator = torch.Generator().manual_seed(0)
        square = {name: torch.zeros_like(one) for name, one in u.items()}
        with torch.enable_grad():
            made = self.made(free) / sd
            for _ in range(probes):
                # random signs turn a sum of slopes into one of squares, where several effects share a site
                signs = 2.0 * torch.randint(2, sd.shape, generator=generator).to(sd) - 1
                slopes = torch.autograd.grad((made * signs).sum(), list(free.values()), retain_graph=True, allow_unused=True)
                for name, slope in zip(free, slopes, strict=True):
                    square[name] += 0.0 if slope is None else slope.square() / probes
        acting = max(sum(bool(square[name].any()) for name in own), 1)
        out = {}
        for name, one in square.items():
            out[name] = (acting * one).rsqrt()
            if name in own:  # not wider than the prior, nor where the delta method fails
                plain = torch.equal(self.value(name, u[name]), u[name])
                out[name] = torch.minimum(out[name], self.unit[name] if plain else self.unit[name].clamp_max(WIDEST))
        return out
