"""No alignment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NoAlignment:
    """No penalty."""

    weight: float = 0.0

    def penalty(self, perturbed: Tensor, control: Tensor) -> Tensor:
        return perturbed.new_zeros(())
