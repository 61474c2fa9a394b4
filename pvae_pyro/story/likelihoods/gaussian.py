"""Gaussian noise on log1p counts per 10,000."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from .expression import LogExpression


@dataclass(frozen=True)
class Gaussian(LogExpression):
    """x_cg ~ Normal(softplus(b_g eta_cg) / b_g, sd_g) on log1p counts per 10,000; `noise` sd_g ~ LogNormal(log start_g, 1).

    The link and its steepness b_g: see `LogExpression`. `link="identity"` gives the linear-Gaussian story.
    """

    def law(self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.mean(eta, level), noise).to_event(1)

    def variance(self, noise: Tensor, level: Tensor) -> Tensor:
        return noise.square()

    def noise_draw(self, like: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator)
