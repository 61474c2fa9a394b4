"""No composition: every condition has an effect of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..plates import Plates
from .scale import is_combination


@dataclass(frozen=True)
class Separate:
    """m_d = sum_p u_p w_p for singles and 0 for combinations, whose shift is their own interaction eta_d alone.

    With `Interaction(width=1, stretch=0, outside=0, surprise_spread=0)` a combination is one more label with an effect of
    its own, as where models give each condition an index. `predicts_new`: an untrained combination is drawn from the
    prior (its targets say nothing of it); False refuses it.
    """

    predicts_new: bool = True

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        return {}

    def compose(self, values: dict[str, Tensor], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        shift = design @ effects
        return torch.where(is_combination(design).unsqueeze(-1), torch.zeros_like(shift), shift)
