"""MCMC over the globals with the latents of cells integrated out: many short chains that start at draws of the guide.

One iteration of every chain: Hamiltonian steps of the continuous globals, draws of shares given the rest, and moves of some
gates with their slabs (`moves`). Settings are adapted during burn-in only; chains are advanced together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from arviz_stats.base.array import array_stats
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import SigmoidTransform
from tqdm import tqdm

from ..guides.sampled import SLABS, Sampled, SampledGuide
from ..guides.sites import Site, read_sites
from ..screen import Screen
from ..story import Story
from .collapsed import CellMoments
from .moves import LONGEST, Chains, Moves

ACCEPTED = 0.8  # of Hamiltonian moves
MOVED = 6  # every gate is moved once in so many iterations


class JointDensity:
    """log p(globals, cells) as a function of vectors: x of all continuous sites on the unconstrained scale, g of all gates."""

    def __init__(self, story: Story, moments: CellMoments) -> None:
        self.story = copy.deepcopy(story).cpu().double().requires_grad_(False)
        self.moments = moments
        self.sites = read_sites(self.story.globals)
        self.continuous = _places([site for site in self.sites if not site.is_gate])
        self.gates = _places([site for site in self.sites if site.is_gate])

    def vectors(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """x (D,) and g (n,) of site values by name."""
        x: list[Tensor] = []
        g: list[Tensor] = []
        for site in self.sites:
            value = values[site.name].detach().cpu().double()
            (g if site.support is None else x).append((value if site.support is None else site.support.inv(value)).flatten())
        return torch.cat(x), torch.cat(g) if g else torch.zeros(0).double()

    def values(self, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """The inverse of `vectors`, for one chain."""
        out = {}
        for site in self.sites:
            columns, shape = (self.gates if site.is_gate else self.continuous)[site.name]
            part = (g if site.is_gate else x)[columns].reshape(shape)
            out[site.name] = part if site.support is None else site.support(part)
        return out

    def __call__(self, x: Tensor, g: Tensor) -> Tensor:
        """A scalar, with the Jacobian of the unconstrained scale."""
        values, total = self.values(x, g), x.new_zeros(())
        globals_, nodes = self._prior(values)
        for node in nodes:
            total = total + node["log_prob"].sum()
        for site in self.sites:
            if site.support is not None:
                columns, shape = self.continuous[site.name]
                total = total + site.support.log_abs_det_jacobian(x[columns].reshape(shape), values[site.name]).sum()
        return total + self.moments.log_likelihood(self.story, globals_)

    def _prior(self, values: dict[str, Tensor]) -> tuple[Any, list[dict[str, Any]]]:
        """Globals of the story at these values, and the nodes of all sites with their `log_prob`."""
        with poutine.block(), poutine.trace() as drawn, poutine.condition(data=values):
            globals_ = self.story.globals()
        drawn.trace.compute_log_prob()
        nodes: dict[str, Any] = drawn.trace.nodes
        return globals_, [node for node in nodes.values() if node["type"] == "sample" and not site_is_subsample(node)]

    def log_likelihood(self, values: dict[str, Tensor]) -> Tensor:
        """log p(cells | globals), a scalar, at values of all sites."""
        return self.moments.log_likelihood(self.story, self._prior(values)[0])

    def shares(self, x: Tensor) -> list[tuple[slice, Callable[[Tensor, Tensor], Tensor]]]:
        """Sites with support `unit_interval`, whose logits have long tails: columns, and the log density's part of each entry.

        Left to the Hamiltonian steps alone: a site whose entries interact, that cells see, or whose entries no plate names. Other
        sites are where x has them while that is found out.
        """
        out: list[tuple[slice, Callable[[Tensor, Tensor], Tensor]]] = []
        for site in self.sites:
            columns, shape = self.continuous.get(site.name, (slice(0), torch.Size()))
            named = shape.numel() == math.prod(frame.size for frame in site.plates)
            if isinstance(site.support, SigmoidTransform) and named:
                terms = partial(self._terms, site)
                if self._apart(x, columns, terms):
                    out.append((columns, terms))
        return out

    def _apart(self, x: Tensor, columns: slice, terms: Callable[[Tensor, Tensor], Tensor], tries: int = 4) -> bool:
        """Whether entries that move, wherever they are, change no terms but their own, and the density by just these: with all
        gates open, which lets cells see most, and with all shut."""
        generator, n = torch.Generator().manual_seed(0), columns.stop - columns.start
        n_gates = sum(shape.numel() for _, shape in self.gates.values())
        for gates in (torch.ones(n_gates).double(), torch.zeros(n_gates).double()):
            for _ in range(tries):
                first, second = (2 * torch.randn(n, generator=generator).double() for _ in range(2))
                still = torch.rand(n, generator=generator) < 0.5
                base, moved = x.clone(), x.clone()
                base[columns], moved[columns] = first, torch.where(still, first, second)
                told, change = terms(moved, gates) - terms(base, gates), self(moved, gates) - self(base, gates)
                if (told[still].abs() > 1e-8).any() or (change - told.sum()).abs() > 1e-6 * (1 + change.abs()):
                    return False
        return True

    def _terms(self, site: Site, x: Tensor, g: Tensor) -> Tensor:
        """Part of the log prior that each entry (n,) of a site has to do with: all sites of its plates."""
        values, own = self.values(x, g), {(frame.name, frame.dim) for frame in site.plates}
        columns, shape = self.continuous[site.name]
        assert site.support is not None
        total = site.support.log_abs_det_jacobian(x[columns].reshape(shape), values[site.name]).flatten()
        kept = {frame.dim for frame in site.plates}
        for node in self._prior(values)[1]:
            if own <= {(frame.name, frame.dim) for frame in node["cond_indep_stack"]}:
                others = [dim for dim in range(-node["log_prob"].dim(), 0) if dim not in kept]
                total = total + (node["log_prob"].sum(others) if others else node["log_prob"]).flatten()
        return total

    def slabs(self) -> tuple[Tensor, Tensor]:
        """Of every gate: the place of its slab in x, and a tenth of the slab's prior sd (a step to feel its curvature by)."""
        spread = {site.name: site.spread for site in self.sites}
        place, step = [torch.zeros(0).long()], [torch.zeros(0).double()]
        for name in self.gates:
            columns, shape = self.continuous[SLABS[name]]
            sd = spread[SLABS[name]]
            assert sd is not None
            place.append(torch.arange(columns.start, columns.stop))
            step.append(0.1 * sd.expand(shape).flatten())
        return torch.cat(place), torch.cat(step)


def _places(sites: list[Site]) -> dict[str, tuple[slice, torch.Size]]:
    """Columns and shape of each site."""
    out, first = {}, 0
    for site in sites:
        shape = site.centre.shape
        out[site.name] = (slice(first, first + shape.numel()), shape)
        first += shape.numel()
    return out


@torch.no_grad()
def run_chains(
    density: JointDensity, start: list[dict[str, Tensor]], settings: Sampled, seed: int, progress: bool, name: str
) -> tuple[list[dict[str, Tensor]], float]:
    """Draws of every site, chains * kept of them, and R-hat of the log density after burn-in; chains start at these values."""
    x, g = (torch.stack(part) for part in zip(*map(density.vectors, start), strict=True))
    moves, order = Moves(density, density.slabs(), seed), np.random.default_rng(seed)
    shares = density.shares(x[0])
    chains = Chains(x, g, moves.value(x, g))
    burn_in, total = settings.burn_in, settings.burn_in + settings.kept * settings.thin
    kept: list[dict[str, Tensor]] = []
    waiting: list[int] = []
    course = []
    for iteration in tqdm(range(1, total + 1), desc=f"{name}, sampling", unit="iteration", disable=not progress):
        if iteration in (1, 1 + burn_in // 6, 1 + burn_in // 3):
            moves.whiten(chains)
        accepted = moves.hamiltonian(chains)
        if iteration <= burn_in // 2:
            chains.step = min(chains.step * math.exp(0.4 * (accepted - ACCEPTED)), LONGEST)
        for columns, terms in shares:
            moves.lattice(chains, columns, terms)
        for _ in range(-(-g.shape[1] // MOVED)):
            waiting = waiting or order.permutation(g.shape[1]).tolist()
            moves.gate(chains, waiting.pop())
        if iteration > burn_in:
            course.append(chains.density.numpy())
            if (iteration - burn_in) % settings.thin == 0:
                kept += [density.values(*row) for row in zip(chains.x, chains.g, strict=True)]
    r_hat = array_stats.rhat(np.stack(course, 1), chain_axis=0, draw_axis=1)  # type: ignore[no-untyped-call]
    return kept, float(r_hat)


def sample_globals(guide: SampledGuide, screen: Screen, rows: np.ndarray, seed: int, progress: bool, name: str) -> None:
    """Run the chains on these cells of a screen, with the decoder as it was trained, and have the guide keep their draws."""
    settings = guide.config
    assert isinstance(settings, Sampled)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
        torch.manual_seed(seed)
        moments = CellMoments.of(screen, rows, guide.story.decoder.intercept.detach().cpu())
        start = [guide.sample_globals() for _ in range(settings.chains)]
        guide.keep(*run_chains(JointDensity(guide.story, moments), start, settings, seed, progress, name))
