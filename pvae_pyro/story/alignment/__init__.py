"""Alignment of the background of perturbed and control cells: a penalty on the guide, apart from the ELBO."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .centroid import Centroid
from .mmd import MMD
from .none import NoAlignment
from .pairwise import Pairwise
from .unaligned import PenaltyOnly, Unaligned


class Alignment(Protocol):
    """Penalty on background posterior means, from condition-balanced samples.

    A class of your own needs `weight` and `penalty`. It is given one sample of controls for all conditions, unless it says what
    else it wants: `paired = True`, a control of its own for every perturbed cell; `matched = True`, the same with
    the control from that cell's batch, where the screen has more than one. One with `sample` and `law` (see `FreeBackground`)
    takes the place of the story's p(z_b) = Normal(0, I).
    """

    @property
    def weight(self) -> float:
        """Factor of the penalty beside the loss per cell."""
        ...

    def penalty(self, perturbed: Tensor, control: Tensor) -> Tensor:
        """Scalar penalty from means of q(z_b | x).

        `perturbed` (conditions, cells, latents). `control` (cells, latents) is one sample for all conditions, or
        (conditions, cells, latents) where control i was drawn for perturbed cell i and may share its batch.
        """
        ...


__all__ = ["MMD", "Alignment", "Centroid", "NoAlignment", "Pairwise", "PenaltyOnly", "Unaligned"]
