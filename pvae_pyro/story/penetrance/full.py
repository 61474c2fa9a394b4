"""Every cell responds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyro.distributions import TorchDistribution
from torch import Tensor

from ..latents import StructuralNormal
from ..plates import Plates


@dataclass(frozen=True)
class Full:
    """Full penetrance: every cell of a condition responds, so that effects are means over all of its cells. No sites."""

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        return like.new_ones(plates.targets.size, 1)

    def rate(self, shares: Tensor, design: Tensor) -> Tensor:
        return shares.new_ones(len(design))

    def law(
        self, rate: Tensor, responding: StructuralNormal, escaped: Callable[[], StructuralNormal]
    ) -> TorchDistribution:
        return responding
