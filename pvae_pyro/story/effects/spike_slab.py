"""Spike-and-slab effects (design 2; the form s * e of SAMS-VAE, arXiv 2311.02794)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .mixture import spike_slab_fit
from .size import effect_scale

Estimator = Literal["reinmax", "straight-through", "enumerate"]


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
    `estimator` of the gradient of the gates' probabilities: "reinmax" (unbiased where the loss is quadratic in each gate),
    "straight-through" (where it is linear; a curved loss biases it) or "enumerate" (exact: a sum over all settings, for at most
    ten gates, each of which doubles its cost). The gates are hard in all three, and so are inclusion probabilities.
    """

    inclusion: float = 0.5
    strength: float = 4.0
    scale_spread: float = 0.05
    estimator: Estimator = "reinmax"

    def __post_init__(self) -> None:
        checks.positive(strength=self.strength, scale_spread=self.scale_spread)
        checks.share(inclusion=self.inclusion)
        checks.choice(get_args(Estimator), estimator=self.estimator)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        n_latents = scale.shape[0]
        a, b = self.strength * self.inclusion, self.strength * (1 - self.inclusion)
        with plates.latents:
            pi = pyro.sample(
                "inclusion", dist.Beta(scale.new_full((n_latents,), a), scale.new_full((n_latents,), b))
            )
        tau = effect_scale(plates, scale, self.scale_spread)
        infer: Any = {"estimator": self.estimator}  # a wish of the prior that guides read
        with plates.targets, plates.latents:
            s = pyro.sample("gates", dist.Bernoulli(pi), infer=infer)  # (targets, latents)
            e = pyro.sample("effects", dist.Normal(torch.zeros_like(tau), tau))  # (targets, latents)
        return s * e

    def start(self, w: Tensor, sd: Tensor, scale: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor | float | None]], Tensor]:
        """Gates by EM on the closed-form effects w (targets, latents) of sampling sd; see `inference.effect_start`."""
        beta = (self.strength * self.inclusion, self.strength * (1 - self.inclusion))
        probability, rate = spike_slab_fit(w, sd.square(), beta)
        probability = probability.clamp(0.02, 0.999)
        slab = torch.where(probability > 0.3, w / probability.clamp_min(0.3), w)
        # given the gates pi_k is Beta(a, b), whose logit has these moments
        a, b = beta[0] + probability.sum(0), beta[1] + (1 - probability).sum(0)
        share, spread = torch.sigmoid(a.digamma() - b.digamma()), (a.polygamma(1) + b.polygamma(1)).sqrt()
        scale = scale / rate.sqrt()
        sites = {"gates": (probability, None), "inclusion": (share, spread), "effects": (slab, sd), "effect_scale": (scale, 0.05)}
        return sites, scale
