"""No graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..plates import Plates


@dataclass(frozen=True)
class NoGraph:
    """No edges: L = 0, responsive latents are independent given the perturbation and the background."""

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        return {"zero": like.new_zeros(len(like), len(like))}

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        zero: Tensor = values["zero"]
        return zero
