"""Dense normal effects: the spike-and-slab with every gate open."""

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
class NormalEffects:
    """Dense effects, w_pk = e_pk ~ Normal(0, tau_k), tau_k ~ LogNormal(log scale_k, scale_spread)."""

    scale_spread: float = 0.05

    def __post_init__(self) -> None:
        checks.positive(scale_spread=self.scale_spread)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        tau = effect_scale(plates, scale, self.scale_spread)
        with plates.targets, plates.latents:
            return pyro.sample("effects", dist.Normal(torch.zeros_like(tau), tau))
