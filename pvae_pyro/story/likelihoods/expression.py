"""What likelihoods on log expression share: the link, the noise site, moments and new cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import checks
from ..plates import Plates
from .moments import Moments, over_normal


@dataclass(frozen=True)
class LogExpression:
    """x_cg = softplus(b_g eta_cg) / b_g + symmetric noise of scale `noise` s_g ~ LogNormal(log start_g, 1), s (genes,).

    The softplus link keeps means positive and lets a small mean change in proportion, as the mean of log1p of sparse
    counts does. b_g = max(1, 1/2 / level_g), where level_g is the control mean: genes that are hardly seen get a link that
    is steep enough not to turn their noise into huge predictors. `link="identity"` gives the linear story.
    A subclass says what the noise is: `law`, `variance` and `noise_draw`.
    """

    link: Literal["softplus", "identity"] = "softplus"
    observes: ClassVar[Literal["expression", "counts"]] = "expression"

    def __post_init__(self) -> None:
        checks.choice(("softplus", "identity"), link=self.link)

    def variance(self, noise: Tensor, level: Tensor) -> Tensor:
        """Variance of the noise, (..., genes)."""
        raise NotImplementedError

    def noise_draw(self, like: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of scale one, shaped as `like` (..., genes)."""
        raise NotImplementedError

    def sample(self, plates: Plates, start: Tensor) -> Tensor:
        with plates.genes:
            return pyro.sample("noise", dist.LogNormal(start.log(), 1.0))

    def mean(self, eta: Tensor, level: Tensor) -> Tensor:
        if self.link == "identity":
            return eta
        b = _steepness(level)
        return softplus(b * eta) / b

    def slope(self, eta: Tensor, level: Tensor) -> Tensor:
        return torch.sigmoid(_steepness(level) * eta) if self.link == "softplus" else torch.ones_like(eta)

    def widest(self, level: Tensor) -> Tensor:
        # between a cell without and a cell with the only count of a rare gene lies noise, not a program
        return torch.full_like(level, float("inf")) if self.link == "identity" else 2 * level

    def noise_of(self, sd: Tensor, level: Tensor) -> Tensor:
        """Scale (genes,) of noise with this sd: what the warm start measures is an sd."""
        return sd / self.variance(torch.ones_like(level), level).sqrt()

    def simulate(
        self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor, generator: torch.Generator
    ) -> Tensor:
        return self.mean(eta, level) + noise * self.noise_draw(eta, level, generator)

    def moments(self, noise: Tensor, library: Tensor, level: Tensor) -> Moments:
        def of(mean: Tensor, variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            if self.link == "identity":
                return mean, variance + self.variance(noise, level)
            b = _steepness(level)
            first, second = over_normal(softplus, b * mean, b.square() * variance)
            return first / b, (second - first.square()) / b.square() + self.variance(noise, level)

        return of


def _steepness(level: Tensor) -> Tensor:
    """b_g of the softplus link, (genes,)."""
    return (0.5 / level.clamp_min(1e-4)).clamp_min(1.0)
