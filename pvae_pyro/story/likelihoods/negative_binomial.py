"""Negative-binomial counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..plates import Plates
from .moments import NODES, Moments
from .table import count_moment_table, interpolate


@dataclass(frozen=True)
class NegativeBinomial:
    """Counts y_cg ~ NegativeBinomial(mean = library_c / 10,000 * exp(eta_cg), inverse dispersion theta_g).

    `noise` (genes,) theta_g ~ LogNormal(log start_g, 1); variance = mean + mean^2 / theta. The library size is the cell's total
    over all genes of the file; batch enters eta through the decoder. Form: scVI (10.1038/s41592-018-0229-2).
    """

    observes: ClassVar[Literal["expression", "counts"]] = "counts"

    def sample(self, plates: Plates, start: Tensor) -> Tensor:
        with plates.genes:
            return pyro.sample("noise", dist.LogNormal(start.log(), 1.0))

    def law(self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor) -> dist.TorchDistribution:
        log_mean = (eta + (library / 1e4).log().unsqueeze(-1)).clamp(
            -30, 15
        )  # beyond this a float32 exp is useless
        return dist.NegativeBinomial(
            total_count=noise, logits=log_mean - noise.log(), validate_args=False
        ).to_event(1)

    def mean(self, eta: Tensor, level: Tensor) -> Tensor:
        return softplus(eta)  # log1p(exp(eta)): log1p of the expected counts per 10,000

    def slope(self, eta: Tensor, level: Tensor) -> Tensor:
        return torch.sigmoid(eta)

    def widest(self, level: Tensor) -> Tensor:
        return torch.ones_like(level)

    def simulate(
        self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor, generator: torch.Generator
    ) -> Tensor:
        mean = (eta + (library / 1e4).log().unsqueeze(-1)).clamp(-30, 15).exp()
        gamma = torch._standard_gamma(noise.expand_as(mean).contiguous(), generator=generator) / noise
        counts = torch.poisson(mean * gamma, generator=generator)
        return torch.log1p(counts * (1e4 / library).unsqueeze(-1))

    def moments(self, noise: Tensor, library: Tensor, level: Tensor) -> Moments:
        grid, table = count_moment_table(noise, library)  # (points,), (2, genes, points)
        # mean and variance are smoother in eta than the second moment: a line through that would add to the variance
        table = torch.stack([table[0], table[1] - table[0].square()])

        def of(mean: Tensor, variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            sd = variance.clamp_min(0).sqrt()
            first, second = torch.zeros_like(mean), torch.zeros_like(mean)
            for node, weight in NODES:
                m1, v1 = interpolate(grid, table, mean + node * sd)
                first, second = first + weight * m1, second + weight * (v1 + m1.square())
            return first, (second - first.square()).clamp_min(0)

        return of
