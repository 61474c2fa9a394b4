"""Small effects add, large ones saturate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .scale import is_combination, log_normal


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
        checks.positive(scale=self.scale)
        if self.capacity != math.inf:  # no saturation: plain addition, times the scale
            checks.positive(capacity=self.capacity)
        checks.not_negative(scale_spread=self.scale_spread, capacity_spread=self.capacity_spread)

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        return {
            "scale": log_normal("composition_scale", self.scale, self.scale_spread, like),
            "capacity": log_normal("capacity", self.capacity, self.capacity_spread, like),
        }

    def compose(self, values: dict[str, Tensor], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        lengths = design.abs() * (unit * effects).norm(dim=-1)  # (conditions, targets)
        pairs = 0.5 * (lengths.sum(-1).square() - lengths.square().sum(-1)).clamp_min(0)  # sum over p < q
        factor = values["scale"] / (1 + pairs / values["capacity"].square()).sqrt()
        factor = torch.where(is_combination(design), factor, torch.ones_like(factor))
        return factor.unsqueeze(-1) * (design @ effects)
