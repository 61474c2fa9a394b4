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
    """What composition cannot know about one combination (design 2, `eta` and `r`).

    `kappa` (latents,) ~ LogNormal(log width, width_spread)
    `stretch` (combinations,) s_d ~ Normal(0, stretch): the pair does more or less of what composition says, in all latents alike
    `interaction` (combinations, latents) e_dk ~ Normal(0, kappa_k h_dk),  h_dk^2 = scale_k^2 + growth sum_p (u_p w_pk)^2
    `residual` (combinations, genes) r_dg ~ Normal(0, outside * sd_g), what lies outside the decoder's span
    `surprise` (combinations,) ~ LogNormal(0, surprise_spread): multiplies the widths of e and r, since some pairs surprise more

    The units of `stretch` and `outside` are learnt from trained combinations, if there are three or more (`stretch_unit` and
    `spread` of the story, by empirical Bayes), as kappa is; the prior's settings are then worth a few combinations.

    eta_d = s_d compose(w)_d + e_d. scale_k is the effect prior's typical size, so that a latent that neither target moves can
    interact, too. Zero for singles and control. Informed prior, source as `Saturating`.
    A width or spread of 0 takes its site out of the program: no `interaction`, `stretch`, `residual`, kappa or surprise fixed.
    """

    width: float = 0.9
    width_spread: float = 0.25
    growth: float = 0.0
    stretch: float = 0.15
    outside: float = 0.07
    surprise_spread: float = 0.3

    def __post_init__(self) -> None:
        checks.not_negative(width=self.width, width_spread=self.width_spread, growth=self.growth)
        checks.not_negative(stretch=self.stretch, outside=self.outside, surprise_spread=self.surprise_spread)

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        """State `kappa` (latents,), unless it is fixed."""
        centre = torch.full_like(like, self.width)
        if self.width == 0 or self.width_spread == 0:
            return centre
        with plates.latents:
            return pyro.sample("kappa", dist.LogNormal(centre.log(), self.width_spread))

    def latent_width(self, kappa: Tensor, scale: Tensor, design: Tensor, effects: Tensor) -> Tensor:
        """kappa_k h_dk, shape (conditions, latents)."""
        h2 = scale.square() + self.growth * (design.square() @ effects.square())
        return kappa * h2.sqrt().clamp_min(1e-6)
