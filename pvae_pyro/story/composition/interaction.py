"""What composition cannot know about one combination: interaction and residual."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates


@dataclass(frozen=True)
class Interaction:
    """Widths of what composition cannot know about one combination (design 2, `eta` and `r`).

    `kappa` (latents,) ~ LogNormal(log width, width_spread)
    `interaction` (combinations, latents) eta_dk ~ Normal(0, kappa_k h_dk),  h_dk^2 = (floor scale_k)^2 + sum_p (u_p w_pk)^2
    `residual` (combinations, genes) r_dg ~ Normal(0, outside * sd_g), what lies outside the decoder's span
    `surprise` (combinations,) ~ LogNormal(0, surprise_spread): multiplies both widths, since some pairs surprise more

    scale_k is the effect prior's typical size. The sum of squares replaces the design's |w_p w_q|: on the even doubles it gave
    the lower CRPS. `floor` > 0 lets a latent interact that neither target moves. Zero for singles and control. Informed
    prior, source as `Saturating`.
    A width or spread of 0 takes its site out of the program: no `interaction`, no `residual`, kappa or surprise fixed.
    """

    width: float = 0.27
    width_spread: float = 0.25
    floor: float = 2.0
    outside: float = 0.07
    surprise_spread: float = 0.3

    def __post_init__(self) -> None:
        checks.not_negative(width=self.width, width_spread=self.width_spread)
        checks.not_negative(outside=self.outside, surprise_spread=self.surprise_spread)
        checks.positive(floor=self.floor)

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        """State `kappa` (latents,), unless it is fixed."""
        centre = torch.full_like(like, self.width)
        if self.width == 0 or self.width_spread == 0:
            return centre
        with plates.latents:
            return pyro.sample("kappa", dist.LogNormal(centre.log(), self.width_spread))

    def latent_width(self, kappa: Tensor, scale: Tensor, design: Tensor, effects: Tensor) -> Tensor:
        """kappa_k h_dk, shape (conditions, latents)."""
        h2 = (self.floor * scale).square() + design.square() @ effects.square()
        return kappa * h2.sqrt().clamp_min(1e-6)
