"""Regularised horseshoe effects (Piironen & Vehtari 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .size import effect_scale


@dataclass(frozen=True)
class Horseshoe:
    """Regularised horseshoe, non-centred: w_pk = z_pk tau_k lambda~_pk,  lambda~^2 = c^2 lambda^2 / (c^2 + tau^2 lambda^2).

    `openness` (latents,) o_k ~ Beta(strength * open_share, strength * (1 - open_share))
    `effect_scale` (latents,) s_k ~ LogNormal(log scale_k, scale_spread)
    `local_scale` (targets, latents) lambda_pk ~ HalfCauchy(1)
    `effects` (targets, latents) z_pk ~ Normal(0, 1)

    An effect that escapes the shrinkage has the slab's width c_k = s_k / sqrt(o_k), the others are of the size of
    tau_k = c_k o_k / (1 - o_k). Since E (tau lambda~ / c)^2 = tau / (tau + c) = o, openness is the expected share of open
    effects, and the sd of w is s_k whatever it is: o near 1 gives normal effects, o near 0 few and large ones.

    Source: Piironen & Vehtari 2017, doi:10.1214/17-EJS1337SI; their tau_0 = share / (1 - share) in units of noise is here in
    units of the slab, since a prior does not know the noise.
    """

    open_share: float = 0.25
    strength: float = 4.0
    scale_spread: float = 0.05

    def __post_init__(self) -> None:
        checks.positive(strength=self.strength, scale_spread=self.scale_spread)
        checks.share(open_share=self.open_share)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        a, b = self.strength * self.open_share, self.strength * (1 - self.open_share)
        with plates.latents:
            o = pyro.sample("openness", dist.Beta(torch.full_like(scale, a), torch.full_like(scale, b)))
        size = effect_scale(plates, scale, self.scale_spread)
        with plates.targets, plates.latents:
            lam = pyro.sample("local_scale", dist.HalfCauchy(torch.ones_like(size)))  # (targets, latents)
            z = pyro.sample("effects", dist.Normal(torch.zeros_like(size), 1.0))  # (targets, latents)
        return z * width(lam, size, o)


def width(lam: Tensor, size: Tensor, openness: Tensor) -> Tensor:
    """tau lambda~, the sd of an effect given its local scale."""
    c = size / openness.sqrt()
    ratio = openness / (1 - openness) * lam  # tau lambda / c
    return c * ratio / torch.hypot(torch.ones_like(ratio), ratio)  # no overflow, however heavy the tail
