"""Cells that escape their perturbation, as a two-component mixture that is summed out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .. import checks
from ..latents import StructuralMixture, StructuralNormal
from ..plates import Plates
from .escape import fit_escape

Rule = Literal["least", "product"]


@dataclass(frozen=True)
class Mixture:
    """Some cells of a condition did not respond: their guides were silent or misassigned, so that they are control cells.

    `penetrance` (targets, 1)  rho_p ~ Beta(strength * centre, strength * (1 - centre))
    z_r | z_b, u ~ rho_d p(z_r | z_b, u) + (1 - rho_d) p(z_r | z_b, 0)

    A cell escapes as a whole, whatever the number of its targets. `combined` says how often one with several responds: "least"
    rho_d = min_p rho_p, failures are the cell's (no nuclease or activator, a wrong label), the same for all of its targets;
    "product" rho_d = prod_p rho_p, each target fails for itself, and one failure is taken to be enough. Control has rho = 1.
    The residual of a combination is one of its mean: rho_d r_d in all of its cells.
    Effects w are then those of responding cells. Of a target without visible effect only rho_p w_p is known, and rho_p stays
    at its prior. Two components in each condition as in Mixscape (Papalexi et al. 2021, 10.1038/s41588-021-00778-2),
    fitted with everything else instead of before it.
    """

    centre: float = 0.9
    strength: float = 10.0
    combined: Rule = "least"

    def __post_init__(self) -> None:
        checks.share(centre=self.centre)
        checks.positive(strength=self.strength)
        checks.choice(get_args(Rule), combined=self.combined)

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        a, b = self.strength * self.centre, self.strength * (1 - self.centre)
        with plates.targets:
            n = (plates.targets.size, 1)
            return pyro.sample("penetrance", dist.Beta(like.new_full(n, a), like.new_full(n, b)))

    def rate(self, shares: Tensor, design: Tensor) -> Tensor:
        of_target = torch.where(design != 0, shares.squeeze(-1), 1.0)
        if self.combined == "product":
            return of_target.prod(-1)
        return torch.cat([of_target, of_target.new_ones(len(design), 1)], -1).amin(-1)

    def law(
        self, rate: Tensor, responding: StructuralNormal, escaped: Callable[[], StructuralNormal]
    ) -> TorchDistribution:
        return StructuralMixture(rate, responding, escaped())

    def start(self, along: Tensor, condition: Tensor, design: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Value and unconstrained sd of the site by EM on cells `along` (cells,) the shift of their own condition.

        Control cells have mean 0 and sd 1 there; only conditions of one target say something. See `fit_escape`.
        """
        single = (design != 0).sum(-1) == 1
        chosen = single[condition]
        target = design.abs().argmax(-1)
        a, b = self.strength * self.centre, self.strength * (1 - self.centre)
        share, sd = fit_escape(along[chosen], condition[chosen], target, design.shape[1], a, b)
        return {"penetrance": (share.unsqueeze(-1), sd.unsqueeze(-1))}
