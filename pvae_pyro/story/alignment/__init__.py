"""Alignment of the background of perturbed and control cells: a penalty on the guide, apart from the ELBO."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .centroid import Centroid
from .none import NoAlignment


class Alignment(Protocol):
    """Penalty on background posterior means, from condition-balanced samples."""

    @property
    def weight(self) -> float:
        """Factor of the penalty beside the loss per cell."""
        ...

    def penalty(self, perturbed: Tensor, control: Tensor) -> Tensor:
        """Scalar penalty; `perturbed` (conditions, cells, latents) and `control` (cells, latents) are means of q(z_b)."""
        ...


__all__ = ["Alignment", "Centroid", "NoAlignment"]
