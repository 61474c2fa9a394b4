"""Correlated globals: a normal whose covariance is diagonal plus low rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import LowRankMultivariateNormal
from torch import Tensor, nn

from ..story import checks
from .amortized import Amortized
from .family import Family
from .joint import Joint
from .sites import Site

SMALL = 0.1  # length of a factor within a site at the start: nearly independent, yet not at the saddle point 0


@dataclass(frozen=True, kw_only=True)
class LowRank(Amortized):
    """Amortized latents with globals that are correlated on the unconstrained scale, all continuous ones together, but for
    those that the story wants apart (loadings):

    u = loc + D^(1/2) (F z + eps),  z ~ Normal(0, I_rank),  eps ~ Normal(0, I):  covariance D^(1/2) (I + F F^T) D^(1/2).

    The density is by Woodbury's identity (torch's LowRankMultivariateNormal), linear in the number of globals.
    `rank`: how many directions may be wider than independent globals make them. Gates stay independent.
    Source: Ong, Nott & Smith 2018, arXiv 1701.03208.
    """

    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(1, rank=self.rank)

    def family(self, sites: list[Site]) -> Family:
        return LowRankNormal(sites, self.initial_scale, self.rank)


class LowRankNormal(Joint):
    """Normal(loc, D^(1/2) (I + F F^T) D^(1/2)) of all continuous sites; `log_scale` is half the log of D.

    What is learnt of F is divided by the square root of a site's size, so that a step changes the length of a factor within a
    site by as much in all sites: with steps of one size for every entry, the noise of the gradient alone would make thousands
    of effects wider, all in random directions.
    """

    weight: Tensor

    def __init__(self, sites: list[Site], initial_scale: float, rank: int) -> None:
        super().__init__(sites, initial_scale)
        self.cover(name for name in self.loc if not self.sites[name].apart)
        n = sum(self.sizes)
        self.scaled_factor = nn.Parameter(SMALL * torch.randn(n, min(rank, n)))
        self.register_buffer("weight", torch.cat([torch.full((size, 1), size**-0.5) for size in self.sizes]))

    def law(self, loc: Tensor, log_scale: Tensor, factor: Tensor) -> LowRankMultivariateNormal:
        """The joint law at these parameters."""
        scale = log_scale.exp()
        return LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * factor, scale.square(), validate_args=False)

    def parameters_of_law(self) -> tuple[Tensor, Tensor, Tensor]:
        """loc (n,), log_scale (n,), factor F (n, rank)."""
        return self.flat(self.loc), self.flat(self.log_scale), self.weight * self.scaled_factor

    def draw(self) -> Tensor:
        loc, log_scale, factor = self.parameters_of_law()
        z, eps = torch.randn_like(factor[0]), torch.randn_like(loc)
        return loc + log_scale.exp() * (factor @ z + eps)

    def log_density(self, u: Tensor) -> Tensor:
        return self.law(*(p.detach() for p in self.parameters_of_law())).log_prob(u)
