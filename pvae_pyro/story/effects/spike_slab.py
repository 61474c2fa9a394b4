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
    `acting` ()              alpha ~ Beta(strength * activity, strength * (1 - activity))
    `activity` (targets, 1)   a_p ~ Beta(activity_strength * alpha, activity_strength * (1 - alpha))
    `gates` (targets, latents)   s_pk ~ Bernoulli(a_p pi_k)
    `effects` (targets, latents) e_pk ~ Normal(0, tau_k)

    A target without effects says so in all its latents at once: a_p, the share of latents open to it, keeps gates shut whose own
    scores say little, however many of the other targets move that latent; alpha is the mean of a_p over targets.
    `activity_strength` 0 takes both out (a_p = 1).
    `scale_k` is 1 without a warm start, and with it the empirical-Bayes size that makes the prior's
    shrinkage equal to optimal singular-value shrinkage on average; `scale_spread` is kept small because
    that size also stands for the uncertainty of the loadings.
    `estimator` of the gradient of the gates' probabilities: "reinmax" (unbiased where the loss is quadratic in each gate),
    "straight-through" (where it is linear; a curved loss biases it) or "enumerate" (exact: a sum over all settings, for at most
    ten gates, each of which doubles its cost). The gates are hard in all three, and so are inclusion probabilities.
    """

    inclusion: float = 0.5
    strength: float = 4.0
    activity: float = 0.3
    activity_strength: float = 1.0
    scale_spread: float = 0.05
    estimator: Estimator = "reinmax"

    def __post_init__(self) -> None:
        checks.positive(strength=self.strength, scale_spread=self.scale_spread)
        checks.not_negative(activity_strength=self.activity_strength)
        checks.share(inclusion=self.inclusion, activity=self.activity)
        checks.choice(get_args(Estimator), estimator=self.estimator)

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        n_latents = scale.shape[0]
        with plates.latents:
            pi = pyro.sample("inclusion", _beta(*self._inclusion, scale.new_ones(n_latents)))
        active = scale.new_ones(())
        if self._acting is not None:
            alpha = pyro.sample("acting", _beta(*self._acting, scale.new_ones(())))
            n = self.activity_strength * alpha.clamp(1e-3, 1 - 1e-3) * scale.new_ones(plates.targets.size, 1)
            with plates.targets:
                active = pyro.sample("activity", dist.Beta(n, self.activity_strength - n))
        tau = effect_scale(plates, scale, self.scale_spread)
        infer: Any = {"estimator": self.estimator}  # a wish of the prior that guides read
        with plates.targets, plates.latents:
            s = pyro.sample("gates", dist.Bernoulli((active * pi).clamp_min(1e-6)), infer=infer)  # (targets, latents)
            e = pyro.sample("effects", dist.Normal(torch.zeros_like(tau), tau))  # (targets, latents)
        return s * e

    def start(self, w: Tensor, sd: Tensor, scale: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor | float | None]], Tensor]:
        """Gates by EM on the closed-form effects w (targets, latents) of sampling sd; see `inference.effect_start`."""
        found = spike_slab_fit(w, sd.square(), self._inclusion, self._acting, self.activity_strength)
        probability = found.member.clamp(0.02, 0.999)
        slab = torch.where(probability > 0.3, w / probability.clamp_min(0.3), w)
        scale = scale / probability.mean(0).clamp(0.02, 0.95).sqrt()
        sites: dict[str, tuple[Tensor, Tensor | float | None]] = {
            "gates": (probability, None), "effects": (slab, sd), "effect_scale": (scale, 0.05),
            "inclusion": _counted(self._inclusion, found.open_columns, found.shut_columns),
        }  # fmt: skip
        if self._acting is not None:
            alpha, n = found.acting, self.activity_strength
            sites["acting"] = _counted(self._acting, alpha * len(w), (1 - alpha) * len(w))
            sites["activity"] = _counted((n * alpha, n * (1 - alpha)), found.open_rows, found.shut_rows)
        return sites, scale

    @property
    def _inclusion(self) -> tuple[float, float]:
        return self.strength * self.inclusion, self.strength * (1 - self.inclusion)

    @property
    def _acting(self) -> tuple[float, float] | None:
        if self.activity_strength == 0:
            return None
        return self.strength * self.activity, self.strength * (1 - self.activity)


def _beta(a: float, b: float, like: Tensor) -> dist.Beta:
    return dist.Beta(a * like, b * like)


def _counted(prior: tuple[Any, Any], open_: Tensor, shut: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of a rate, and sd of its logit, given the openings: the moments of the logit of a Beta variable."""
    a, b = prior[0] + open_, prior[1] + shut
    return torch.sigmoid(a.digamma() - b.digamma()), (a.polygamma(1) + b.polygamma(1)).sqrt()
