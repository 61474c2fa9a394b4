"""Likelihoods: from the linear predictor eta of a cell to its expression, and the moments that predictions need.

Every likelihood predicts on one scale, log1p(counts per 10,000); `Moments` integrates a normal eta over cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import InputError
from .moments import count_moment_table, interpolate
from .plates import Plates

# (mean of eta, variance of eta, noise), each (..., genes) -> mean and variance of a cell's log expression
Moments = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Likelihood(Protocol):
    """What the story asks of a likelihood."""

    observes: ClassVar[Literal["expression", "counts"]]

    def sample(self, plates: Plates, start: Tensor) -> Tensor:
        """State the per-gene noise site, centred on `start` (genes,), and return it."""
        ...

    def law(self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor) -> dist.TorchDistribution:
        """Distribution of the observed genes of cells: eta (cells, genes), library (cells,), control level (genes,)."""
        ...

    def mean(self, eta: Tensor, level: Tensor) -> Tensor:
        """Expression on the log scale of a cell with this linear predictor (without noise), shape kept."""
        ...

    def slope(self, eta: Tensor, level: Tensor) -> Tensor:
        """d mean / d eta on the log scale, shape kept."""
        ...

    def widest(self, level: Tensor) -> Tensor:
        """Largest sd of eta between control cells that a start may give a gene of this control mean, (genes,)."""
        ...

    def simulate(
        self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor, generator: torch.Generator
    ) -> Tensor:
        """New cells on the log scale, (cells, genes)."""
        ...

    def moments(self, noise: Tensor, library: Tensor, level: Tensor) -> Moments:
        """Moments of a cell's log expression; `noise` (genes,) typical noise, `library` (cells,) typical libraries."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """x_cg ~ Normal(softplus(b_g eta_cg) / b_g, sd_g) on log1p counts per 10,000; `noise` sd_g ~ LogNormal(log start_g, 1).

    The softplus link keeps means positive and lets a small mean change in proportion, as the mean of log1p of sparse
    counts does. b_g = max(1, 1/2 / level_g), where level_g is the control mean: genes that are hardly seen get a link that
    is steep enough not to turn their noise into huge predictors. `link="identity"` gives the linear-Gaussian story.
    """

    link: Literal["softplus", "identity"] = "softplus"
    observes: ClassVar[Literal["expression", "counts"]] = "expression"

    def __post_init__(self) -> None:
        if self.link not in ("softplus", "identity"):
            raise InputError(
                f"link must be 'softplus' or 'identity', but {self.link!r} was given; choose one of the two."
            )

    def sample(self, plates: Plates, start: Tensor) -> Tensor:
        with plates.genes:
            return pyro.sample("noise", dist.LogNormal(start.log(), 1.0))

    def mean(self, eta: Tensor, level: Tensor) -> Tensor:
        if self.link == "identity":
            return eta
        b = _steepness(level)
        return softplus(b * eta) / b

    def law(self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.mean(eta, level), noise).to_event(1)

    def slope(self, eta: Tensor, level: Tensor) -> Tensor:
        return torch.sigmoid(_steepness(level) * eta) if self.link == "softplus" else torch.ones_like(eta)

    def widest(self, level: Tensor) -> Tensor:
        # between a cell without and a cell with the only count of a rare gene lies noise, not a program
        return torch.full_like(level, float("inf")) if self.link == "identity" else 2 * level

    def simulate(
        self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor, generator: torch.Generator
    ) -> Tensor:
        return self.mean(eta, level) + noise * torch.randn(eta.shape, generator=generator)

    def moments(self, noise: Tensor, library: Tensor, level: Tensor) -> Moments:
        def of(mean: Tensor, variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            if self.link == "identity":
                return mean, variance + noise.square()
            first, second = _over_normal(lambda eta: self.mean(eta, level), mean, variance)
            return first, second - first.square() + noise.square()

        return of


def _steepness(level: Tensor) -> Tensor:
    """b_g of the softplus link, (genes,)."""
    return (0.5 / level.clamp_min(1e-4)).clamp_min(1.0)


def _over_normal(f: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """E f(eta) and E f(eta)^2 for eta ~ Normal(mean, variance), by Gauss-Hermite quadrature with seven nodes."""
    sd = variance.clamp_min(0).sqrt()
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        value = f(mean + float(node) * sd)
        first = first + float(weight) * value
        second = second + float(weight) * value.square()
    return first, second


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
            for node, weight in zip(_NODES, _WEIGHTS, strict=True):
                m1, v1 = interpolate(grid, table, mean + float(node) * sd)
                first, second = first + float(weight) * m1, second + float(weight) * (v1 + m1.square())
            return first, (second - first.square()).clamp_min(0)

        return of
