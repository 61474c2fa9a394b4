"""MCMC over the globals with the latents of cells integrated out: many short chains that start at draws of the guide.

One iteration of every chain: Hamiltonian steps of the continuous globals (Neal 2011, arXiv 1206.1901), whitened by the negative
Hessian of the log density, and joint moves of some gates with their slabs, drawn from the normal that three values of the log
density fit and accepted by Metropolis and Hastings. Settings are adapted during burn-in only; chains are advanced together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from arviz_stats.base.array import array_stats
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import grad, jacrev, vmap
from tqdm import tqdm

from ..errors import InputError
from ..guides.sampled import Sampled, SampledGuide
from ..guides.sites import Site, read_sites
from ..screen import Screen
from ..story import Story
from .collapsed import CellMoments
from .svi import NotFinite

SLABS = {"gates": "effects", "edge_gates": "edge_weights"}  # what a gate lets through
LEAPFROGS, ACCEPTED, LONGEST = 4, 0.8, 0.8  # of a Hamiltonian move: steps, share to accept, length of a step
MOVED = 6  # every gate is moved once in so many iterations
CHUNK = 256  # rows of the Hessian at a time


class JointDensity:
    """log p(globals, cells) as a function of vectors: x of all continuous sites on the unconstrained scale, g of all gates."""

    def __init__(self, story: Story, moments: CellMoments) -> None:
        self.story = copy.deepcopy(story).cpu().double().requires_grad_(False)
        self.moments = moments
        self.sites = read_sites(self.story.globals)
        self.continuous = _places([site for site in self.sites if not site.is_gate])
        self.gates = _places([site for site in self.sites if site.is_gate])
        normal = {site.name for site in self.sites if site.spread is not None}
        if unknown := [name for name in self.gates if SLABS.get(name) not in normal]:
            raise InputError(f"no move is known for the gates {', '.join(unknown)} without a normal slab; take another guide.")

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
        with poutine.block(), poutine.trace() as drawn, poutine.condition(data=values):
            globals_ = self.story.globals()
        nodes: dict[str, Any] = drawn.trace.nodes
        for node in nodes.values():
            if node["type"] == "sample" and not site_is_subsample(node):
                total = total + node["fn"].log_prob(node["value"]).sum()
        for site in self.sites:
            if site.support is not None:
                columns, shape = self.continuous[site.name]
                total = total + site.support.log_abs_det_jacobian(x[columns].reshape(shape), values[site.name]).sum()
        return total + self.moments.log_likelihood(self.story, globals_)

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


@dataclass
class Chains:
    """Where all chains are: x (chains, D), g (chains, gates), density (chains,) there; step: of Hamiltonian moves."""

    x: Tensor
    g: Tensor
    density: Tensor
    step: float = 0.1


class Moves:
    """The two moves, of all chains at once."""

    def __init__(self, density: Callable[[Tensor, Tensor], Tensor], slabs: tuple[Tensor, Tensor], seed: int) -> None:
        self.one, self.value = density, vmap(density)
        self.slab, self.reach = slabs
        self.generator = torch.Generator().manual_seed(seed)
        self.root = torch.zeros(0)

    def whiten(self, chains: Chains, rows: int = 3) -> None:
        """Root of the inverse of the negative Hessian, averaged over some chains.

        With all gates open and shut slabs near zero (at zero itself a length has no curvature): a slab is then as stiff as where
        its gate is open, and a shut one, which is drawn anew with its gate, need not move.
        """
        x, g = chains.x[:rows].clone(), torch.ones_like(chains.g[:rows])
        x[:, self.slab] = torch.where(chains.g[:rows] > 0.5, x[:, self.slab], self.reach)
        hessian = jacrev(grad(self.one), chunk_size=CHUNK)
        curvature = -torch.stack([hessian(*row) for row in zip(x, g, strict=True)]).mean(0)
        if not torch.isfinite(curvature).all():
            raise NotFinite("the log density has no finite curvature at the draws of the guide; train it for longer first.")
        values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.T))
        size = values.abs()
        self.root = vectors * size.clamp_min(0.01 * float(size.median())).rsqrt()

    def hamiltonian(self, chains: Chains) -> float:
        """Some leapfrog steps of every chain; returns the share accepted."""
        x, (value, slope) = chains.x, self._slope(chains.x, chains.g)
        momentum = self._normal(x)
        before = value - 0.5 * momentum.square().sum(1)
        momentum = momentum + 0.5 * chains.step * slope
        for left in reversed(range(LEAPFROGS)):
            x = x + chains.step * momentum @ self.root.T
            value, slope = self._slope(x, chains.g)
            momentum = momentum + (chains.step if left else 0.5 * chains.step) * slope
        # a step that leaves the support gives NaN, and is rejected
        chance = (value - 0.5 * momentum.square().sum(1) - before).clamp(max=0).exp().nan_to_num(0.0)
        self._take(chains, self._uniform(chance) < chance, x, chains.g, value)
        return float(chance.mean())

    def gate(self, chains: Chains, number: int) -> None:
        """Draw one gate and its slab anew in every chain.

        Along the slab the log density is quadratic where shifts are linear in effects, with the gate open as with it shut: the
        proposal is then the exact conditional law, and always accepted.
        """
        n, column, reach = len(chains.x), int(self.slab[number]), self.reach[number]
        x, g = chains.x.repeat(6, 1), chains.g.repeat(6, 1)
        x[:, column] = (torch.tensor([-1.0, 0.0, 1.0]).double() * reach).repeat(2).repeat_interleave(n)
        g[:, number] = torch.arange(2).double().repeat_interleave(3 * n)
        low, middle, high = self.value(x, g).view(2, 3, n).unbind(1)
        slope, curvature = (high - low) / (2 * reach), ((2 * middle - low - high) / reach**2).clamp_min(1e-6)
        mean, sd = slope / curvature, curvature.rsqrt()
        mass = torch.log_softmax(middle + 0.5 * slope * mean + sd.log(), 0)  # of both settings, slab integrated out
        proposed = (self._uniform(mass[0]) < mass[1].exp()).double()
        slab = _of(mean, proposed) + _of(sd, proposed) * self._normal(mass[0])

        def log_proposal(gate: Tensor, slab: Tensor) -> Tensor:
            z = (slab - _of(mean, gate)) / _of(sd, gate)
            return _of(mass, gate) - 0.5 * z.square() - _of(sd, gate).log()

        x, g = chains.x.clone(), chains.g.clone()
        ratio = log_proposal(g[:, number], x[:, column]) - log_proposal(proposed, slab)
        x[:, column], g[:, number] = slab, proposed
        value = self.value(x, g)
        self._take(chains, self._uniform(ratio).log() < value - chains.density + ratio, x, g, value)

    def _slope(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and its gradient in whitened coordinates."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            value = self.value(x, g)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope @ self.root

    def _take(self, chains: Chains, accepted: Tensor, x: Tensor, g: Tensor, density: Tensor) -> None:
        chains.x, chains.g = (torch.where(accepted[:, None], new, old) for new, old in ((x, chains.x), (g, chains.g)))
        chains.density = torch.where(accepted, density, chains.density)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


def _of(both: Tensor, gate: Tensor) -> Tensor:
    """The row of (2, chains) that each chain's gate (chains,) names."""
    return torch.where(gate > 0.5, both[1], both[0])


@torch.no_grad()
def run_chains(
    density: JointDensity, start: list[dict[str, Tensor]], settings: Sampled, seed: int, progress: bool, name: str
) -> tuple[list[dict[str, Tensor]], float]:
    """Draws of every site, chains * kept of them, and R-hat of the log density after burn-in; chains start at these values."""
    x, g = (torch.stack(part) for part in zip(*map(density.vectors, start), strict=True))
    moves, order = Moves(density, density.slabs(), seed), np.random.default_rng(seed)
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
