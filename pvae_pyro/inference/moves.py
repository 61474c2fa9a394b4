"""Moves of Markov chains that leave a density of continuous coordinates and gates as it is, for all chains at once.

Hamiltonian steps of the continuous coordinates (Neal 2011, arXiv 1206.1901), whitened by the negative Hessian of the log density;
joint moves of a gate with its slab, drawn from the normal that three values of the log density fit and accepted by Metropolis and
Hastings; and of coordinates with long tails, draws among the points of a lattice, which need no step size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from .svi import NotFinite

LEAPFROGS, LONGEST = 4, 0.6  # of a Hamiltonian move: steps, and length of a step; 0.8 would be half a period of a normal
CHUNK = 256  # rows of the Hessian at a time
POINTS, FINEST, COARSEST = 24, 0.05, 4.0  # of a lattice: points, distances between two of them


@dataclass
class Chains:
    """Where all chains are: x (chains, D), g (chains, gates), density (chains,) there; step: of Hamiltonian moves."""

    x: Tensor
    g: Tensor
    density: Tensor
    step: float = 0.1


class Moves:
    """All moves of these chains; `slabs`: of every gate the place of its slab in x and a step to feel its curvature by."""

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
        """Some leapfrog steps of every chain; returns the mean probability of being accepted."""
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

    def lattice(self, chains: Chains, columns: slice, terms: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Draw these coordinates anew among equally spaced points, the present one being any of them with the same probability.

        Every point of a lattice would have been given it with the same probability, so that Gibbs draws among its points need no
        correction.
        `terms` of one chain: what the log density has of each coordinate, which must be independent given all others.
        """
        n, now = len(chains.x), chains.x[:, columns]
        low, high = math.log(FINEST), math.log(COARSEST)
        distance = math.exp(low + (high - low) * float(self._uniform(now[0, 0])))
        place = torch.randint(POINTS, now.shape, generator=self.generator)
        points = now + distance * (torch.arange(POINTS).view(-1, 1, 1) - place)  # (points, chains, coordinates)
        x = chains.x.repeat(POINTS, 1)
        x[:, columns] = points.flatten(0, 1)
        value = vmap(terms)(x, chains.g.repeat(POINTS, 1)).unflatten(0, (POINTS, n))
        value = torch.where(value < math.inf, value, -math.inf)
        drawn = (value - (-self._uniform(value).log()).log()).argmax(0, keepdim=True)  # of the softmax, by Gumbel noise
        chains.x = chains.x.clone()
        chains.x[:, columns] = points.gather(0, drawn)[0]
        chains.density = chains.density + (value.gather(0, drawn) - value.gather(0, place.unsqueeze(0)))[0].sum(1)

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
