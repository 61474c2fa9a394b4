"""The site that effect priors share: the typical size of an effect on each latent."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from ..plates import Plates


def effect_scale(plates: Plates, scale: Tensor, spread: float) -> Tensor:
    """State `effect_scale` (latents,) tau_k ~ LogNormal(log scale_k, spread)."""
    with plates.latents:
        return pyro.sample("effect_scale", dist.LogNormal(scale.log(), spread))
