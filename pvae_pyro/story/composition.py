"""How effects of several targets combine: m_d = compose({u_p w_p}) + eta_d (design 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import InputError
from .plates import Plates


class Composition(Protocol):
    """What the story asks of a composition: its sites, then a pure function of the design and the effects."""

    def sample(self, like: Tensor) -> dict[str, Tensor]:
        """State the sites and return the values that `compose` needs."""
        ...

    def compose(self, values: dict[str, Tensor], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        """Mean effect of each condition, shape (conditions, latents).

        `design` (conditions, targets) holds doses, `effects` (targets, latents) is w, and `unit` (latents,) is the
        number of control-cell standard deviations in one unit of each latent.
        """
        ...


def is_combination(design: Tensor) -> Tensor:
    """True for the rows of a design with two or more targets, shape (conditions,)."""
    return (design != 0).sum(-1) >= 2


def _log_normal(name: str, centre: float, spread: float, like: Tensor) -> Tensor:
    """The site `name` ~ LogNormal(log centre, spread), or the constant `centre` where spread is 0."""
    if spread == 0:
        return like.new_tensor(centre)
    return pyro.sample(name, dist.LogNormal(like.new_tensor(math.log(centre)), spread))


def _check(scale: float, scale_spread: float) -> None:
    if not scale > 0:
        raise InputError(f"scale must be greater than 0, but {scale} was given; 1 means plain addition.")
    if scale_spread < 0:
        raise InputError(
            f"scale_spread must not be negative, but {scale_spread} was given; 0 fixes the scale."
        )


@dataclass(frozen=True)
class Additive:
    """m_d = k * sum_p u_p w_p for combinations, with k = `composition_scale` ~ LogNormal(log scale, scale_spread).

    Singles are never scaled. The default k = 1 without spread is plain addition in latent space.
    """

    scale: float = 1.0
    scale_spread: float = 0.0

    def __post_init__(self) -> None:
        _check(self.scale, self.scale_spread)

    def sample(self, like: Tensor) -> dict[str, Tensor]:
        return {"scale": _log_normal("composition_scale", self.scale, self.scale_spread, like)}

    def compose(self, values: dict[str, Tensor], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        factor = torch.where(is_combination(design), values["scale"], torch.ones_like(values["scale"]))
        return factor.unsqueeze(-1) * (design @ effects)


@dataclass(frozen=True)
class Saturating:
    """Small effects add, large ones saturate: m_d = k / sqrt(1 + sum_{p<q} |u_p w_p| |u_q w_q| / c^2) * sum_p u_p w_p.

    |.| is the length of an effect in control-cell standard deviations, so that c, the capacity, means the same in
    every screen: two effects of length c add to 1/sqrt(2) of their sum.
    `composition_scale` k ~ LogNormal(log scale, scale_spread); `capacity` c ~ LogNormal(log capacity, capacity_spread).

    Source: own; an informed prior. Centres were chosen on the 41 even doubles of the semi-synthetic Norman screen
    (experiments/first_light), where one common factor does worse. With combinations in training both are learnt.
    """

    scale: float = 1.0
    scale_spread: float = 0.07
    capacity: float = 7.0
    capacity_spread: float = 0.25

    def __post_init__(self) -> None:
        _check(self.scale, self.scale_spread)
        if not self.capacity > 0:
            raise InputError(f"capacity must be greater than 0, but {self.capacity} was given; try 7.")
        if self.capacity_spread < 0:
            raise InputError(
                f"capacity_spread must not be negative, but {self.capacity_spread} was given; try 0.25."
            )

    def sample(self, like: Tensor) -> dict[str, Tensor]:
        return {
            "scale": _log_normal("composition_scale", self.scale, self.scale_spread, like),
            "capacity": _log_normal("capacity", self.capacity, self.capacity_spread, like),
        }

    def compose(self, values: dict[str, Tensor], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        lengths = design.abs() * (unit * effects).norm(dim=-1)  # (conditions, targets)
        pairs = 0.5 * (lengths.sum(-1).square() - lengths.square().sum(-1)).clamp_min(0)  # sum over p < q
        factor = values["scale"] / (1 + pairs / values["capacity"].square()).sqrt()
        factor = torch.where(is_combination(design), factor, torch.ones_like(factor))
        return factor.unsqueeze(-1) * (design @ effects)


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
        for name in ("width", "width_spread", "outside", "surprise_spread"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"{name} must not be negative, but {getattr(self, name)} was given; 0 switches it off."
                )
        if not self.floor > 0:
            raise InputError(f"floor must be greater than 0, but {self.floor} was given; try 2.")

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
