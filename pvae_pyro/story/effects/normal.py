"""Dense normal effects: the spike-and-slab with every gate open."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates


@dataclass(frozen=True)
class NormalEffects:
    """Dense effects, w_pk = e_pk ~ Normal(0, tau_k), tau_k ~ LogNormal(log scale_k, scale_spread)."""

    scale_spread: float = 0.05

    def __post_init__(self) -> None:
        checks.positive(scale_spread=self.scale_spread)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        with plates.latents:
            tau = pyro.sample("effect_scale", dist.LogNormal(scale.log(), self.scale_spread))
        with plates.targets, plates.latents:
            return pyro.sample("effects", dist.Normal(torch.zeros_like(tau), tau))

    def start(self, w: Tensor, sd: Tensor, scale: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor | float | None]], Tensor]:
        """At the closed-form effects w (targets, latents) of sampling sd; see `inference.effect_start`."""
        return {"effects": (w, sd), "effect_scale": (scale, 0.05)}, scale
