"""The law of the responsive latents given the background, as one distribution (paper Eq. 59), and a mixture of two."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class StructuralNormal(TorchDistribution):
    """z = L z + mean + eps, eps ~ Normal(0, scale): z = (I - L)^{-1}(mean + eps) by triangular solve.

    `mean` and `scale` (..., latents) belong to the noise, `graph` (latents, latents) is strictly lower triangular, so the
    density needs no determinant: log p(z) = log Normal(z - L z; mean, scale). `graph` may have one L for each row of `mean`.
    `order`: of the latents, causes first, where the graph is triangular in another than their own.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Tensor, graph: Tensor, scale: Tensor, order: Tensor | None = None) -> None:
        self.mean_noise, self.scale = torch.broadcast_tensors(mean, scale)
        self.graph, self.order = graph, order
        super().__init__(self.mean_noise.shape[:-1], self.mean_noise.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuralNormal:
        shape = torch.Size(batch_shape) + self.event_shape
        return StructuralNormal(self.mean_noise.expand(shape), self.graph, self.scale.expand(shape), self.order)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.mean_noise.shape
        noise = self.mean_noise + self.scale * torch.randn(
            shape, dtype=self.scale.dtype, device=self.scale.device
        )
        return propagate(noise, self.graph, self.order)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - times(value, self.graph) - self.mean_noise) / self.scale
        return -(0.5 * z.square() + self.scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    @property
    def mean(self) -> Tensor:
        return propagate(self.mean_noise, self.graph, self.order)


class StructuralMixture(TorchDistribution):
    """z ~ rate * responding + (1 - rate) * escaped, which of the two summed out; `rate` has their batch shape.

    Rates are kept from 0 and 1 by 1e-6: a cell that surely responds has two equal components anyway.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, rate: Tensor, responding: StructuralNormal, escaped: StructuralNormal) -> None:
        self.rate = rate.clamp(1e-6, 1 - 1e-6)
        self.responding, self.escaped = responding, escaped
        super().__init__(responding.batch_shape, responding.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuralMixture:
        parts = self.responding.expand(batch_shape), self.escaped.expand(batch_shape)
        return StructuralMixture(self.rate.expand(torch.Size(batch_shape)), *parts)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            responds = torch.bernoulli(self.rate.expand(torch.Size(sample_shape) + self.batch_shape)).bool()
            one, other = self.responding.rsample(sample_shape), self.escaped.rsample(sample_shape)
            return torch.where(responds.unsqueeze(-1), one, other)

    def log_prob(self, value: Tensor) -> Tensor:
        one = self.rate.log() + self.responding.log_prob(value)
        return torch.logaddexp(one, torch.log1p(-self.rate) + self.escaped.log_prob(value))

    @property
    def mean(self) -> Tensor:
        rate = self.rate.unsqueeze(-1)
        return rate * self.responding.mean + (1 - rate) * self.escaped.mean


def times(z: Tensor, graph: Tensor) -> Tensor:
    """L z for row vectors z (..., latents); `graph` (latents, latents), or one for each row (..., latents, latents)."""
    return z @ graph.T if graph.dim() == 2 else (graph @ z.unsqueeze(-1)).squeeze(-1)


def propagate(source: Tensor, graph: Tensor, order: Tensor | None = None) -> Tensor:
    """(I - L)^{-1} source for row vectors (..., latents); `graph` as in `times`, strictly lower triangular in `order`."""
    if order is not None:
        return propagate(source[..., order], _sorted(graph, order))[..., order.argsort()]
    system = torch.eye(graph.shape[-1], dtype=graph.dtype, device=graph.device) - graph
    if graph.dim() > 2:
        return torch.linalg.solve_triangular(system, source.unsqueeze(-1), upper=False, unitriangular=True).squeeze(-1)
    flat = source.reshape(-1, source.shape[-1]).T
    return torch.linalg.solve_triangular(system, flat, upper=False, unitriangular=True).T.reshape(source.shape)


def carried(loadings: Tensor, graph: Tensor, order: Tensor | None = None) -> Tensor:
    """(I - L)^{-T} loadings (..., latents, columns): what a unit of noise of each latent does once the graph passed it on."""
    if order is not None:
        return carried(loadings[..., order, :], _sorted(graph, order))[..., order.argsort(), :]
    system = torch.eye(graph.shape[-1], dtype=graph.dtype, device=graph.device) - graph
    return torch.linalg.solve_triangular(system.mT, loadings, upper=True, unitriangular=True)


def _sorted(graph: Tensor, order: Tensor) -> Tensor:
    return graph[..., order, :][..., order]
