"""Priors of the perturbation effects w on the responsive latents (design 2; SAMS-VAE, arXiv 2311.02794, for the form s * e)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import InputError
from .plates import Plates


class Effects(Protocol):
    """What the story asks of an effect prior: one Pyro statement that returns w, shape (targets, latents)."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        """State the sites and return w (targets, latents); `scale` (latents,) is the typical size of an effect."""
        ...

    @property
    def per_target(self) -> tuple[str, ...]:
        """Names of the sites that belong to one target each; the others are shared by all targets."""
        ...


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(
                f"{name} must be greater than 0, but {value} was given; choose a positive number."
            )


@dataclass(frozen=True)
class SpikeSlab:
    """Spike-and-slab effects, w_pk = s_pk * e_pk.

    `inclusion` (latents,)  pi_k  ~ Beta(strength * inclusion, strength * (1 - inclusion))
    `effect_scale` (latents,) tau_k ~ LogNormal(log scale_k, scale_spread)
    `gates` (targets, latents)   s_pk ~ Bernoulli(pi_k)
    `effects` (targets, latents) e_pk ~ Normal(0, tau_k)

    `scale_k` is 1 without a warm start, and with it the empirical-Bayes size that makes the prior's
    shrinkage equal to optimal singular-value shrinkage on average; `scale_spread` is kept small because
    that size also stands for the uncertainty of the loadings.
    """

    inclusion: float = 0.5
    strength: float = 4.0
    scale_spread: float = 0.05

    def __post_init__(self) -> None:
        _check_positive(strength=self.strength, scale_spread=self.scale_spread)
        if not 0 < self.inclusion < 1:
            raise InputError(
                f"inclusion must lie strictly between 0 and 1, but {self.inclusion} was given; choose for example 0.5."
            )

    @property
    def per_target(self) -> tuple[str, ...]:
        return ("gates", "effects")

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        n_latents = scale.shape[0]
        a, b = self.strength * self.inclusion, self.strength * (1 - self.inclusion)
        with plates.latents:
            pi = pyro.sample(
                "inclusion", dist.Beta(scale.new_full((n_latents,), a), scale.new_full((n_latents,), b))
            )
            tau = pyro.sample("effect_scale", dist.LogNormal(scale.log(), self.scale_spread))
        with plates.targets, plates.latents:
            s = pyro.sample("gates", dist.Bernoulli(pi))  # (targets, latents)
            e = pyro.sample("effects", dist.Normal(torch.zeros_like(tau), tau))  # (targets, latents)
        return s * e


@dataclass(frozen=True)
class NormalEffects:
    """Dense effects, w_pk = e_pk ~ Normal(0, tau_k), tau_k ~ LogNormal(log scale_k, scale_spread)."""

    scale_spread: float = 0.05

    def __post_init__(self) -> None:
        _check_positive(scale_spread=self.scale_spread)

    @property
    def per_target(self) -> tuple[str, ...]:
        return ("effects",)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        with plates.latents:
            tau = pyro.sample("effect_scale", dist.LogNormal(scale.log(), self.scale_spread))
        with plates.targets, plates.latents:
            return pyro.sample("effects", dist.Normal(torch.zeros_like(tau), tau))
