"""Priors of the perturbation effects w on the responsive latents, one short file each."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..plates import Plates
from .horseshoe import Horseshoe
from .laplace import LaplaceEffects
from .normal import NormalEffects
from .spike_slab import SpikeSlab


class Effects(Protocol):
    """What the story asks of an effect prior: one Pyro statement that returns w, shape (targets, latents).

    A class of your own needs no more than this method. Sites inside `plates.targets` belong to one target each; for a target
    never trained they are drawn anew. A warm start puts w at the closed-form shifts by itself; a part that knows better
    has a method `start` (see `SpikeSlab.start`).
    """

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        """State the sites and return w (targets, latents); `scale` (latents,) is the typical size of an effect."""
        ...


__all__ = ["Effects", "Horseshoe", "LaplaceEffects", "NormalEffects", "SpikeSlab"]
