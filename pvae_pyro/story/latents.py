"""The law of the responsive latents given the background, as one distribution (paper Eq. 59)."""

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
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Tensor, graph: Tensor, scale: Tensor) -> None:
        self.mean_noise, self.scale = torch.broadcast_tensors(mean, scale)
        self.graph = graph
        super().__init__(self.mean_noise.shape[:-1], self.mean_noise.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuralNormal:
        shape = torch.Size(batch_shape) + self.event_shape
        return StructuralNormal(self.mean_noise.expand(shape), self.graph, self.scale.expand(shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.mean_noise.shape
        noise = self.mean_noise + self.scale * torch.randn(
            shape, dtype=self.scale.dtype, device=self.scale.device
        )
        return propagate(noise, self.graph)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - times(value, self.graph) - self.mean_noise) / self.scale
        return -(0.5 * z.square() + self.scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    @property
    def mean(self) -> Tensor:
        return propagate(self.mean_noise, self.graph)


def times(z: Tensor, graph: Tensor) -> Tensor:
    """L z for row vectors z (..., latents); `graph` (latents, latents), or one for each row (..., latents, latents)."""
    return z @ graph.T if graph.dim() == 2 else (graph @ z.unsqueeze(-1)).squeeze(-1)


def propagate(source: Tensor, graph: Tensor) -> Tensor:
    """(I - L)^{-1} source for row vectors (..., latents); `graph` as in `times`, strictly lower triangular."""
    identity = torch.eye(graph.shape[-1], dtype=graph.dtype, device=graph.device)
    if graph.dim() > 2:
        solve = torch.linalg.solve_triangular(identity - graph, source.unsqueeze(-1), upper=False, unitriangular=True)
        return solve.squeeze(-1)
    flat = source.reshape(-1, source.shape[-1]).T
    solved = torch.linalg.solve_triangular(identity - graph, flat, upper=False, unitriangular=True)
    return solved.T.reshape(source.shape)
