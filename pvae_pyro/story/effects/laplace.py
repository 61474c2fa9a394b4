"""Laplace effects: the Bayesian lasso."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .size import effect_scale


@dataclass(frozen=True)
class LaplaceEffects:
    """Effects of which most are small and few are large, w_pk ~ Laplace(0, tau_k / sqrt(2)), whose sd is tau_k.

    `effect_scale` (latents,) tau_k ~ LogNormal(log scale_k, scale_spread)
    `effects` (targets, latents) w_pk

    Source: the Bayesian lasso (Park & Casella 2008, doi:10.1198/016214508000000337). All effects are pulled towards zero
    by the same force, so that none is exactly zero in the posterior mean, and large ones are shrunk, too.
    """

    scale_spread: float = 0.05

    def __post_init__(self) -> None:
        checks.positive(scale_spread=self.scale_spread)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        tau = effect_scale(plates, scale, self.scale_spread)
        with plates.targets, plates.latents:
            return pyro.sample("effects", dist.Laplace(torch.zeros_like(tau), tau / math.sqrt(2)))
