"""Plain addition of effects, times a factor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .scale import is_combination, log_normal


@dataclass(frozen=True)
class Additive:
    """m_d = k * sum_p u_p w_p for combinations, with k = `composition_scale` ~ LogNormal(log scale, scale_spread).

    Singles are never scaled. The default k = 1 without spread is plain addition in latent space.
    """

    scale: float = 1.0
    scale_spread: float = 0.0

    def __post_init__(self) -> None:
        checks.positive(scale=self.scale)
        checks.not_negative(scale_spread=self.scale_spread)

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        return {"scale": log_normal("composition_scale", self.scale, self.scale_spread, like)}

    def compose(self, values: dict[str, Tensor], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        factor = torch.where(is_combination(design), values["scale"], torch.ones_like(values["scale"]))
        return factor.unsqueeze(-1) * (design @ effects)
