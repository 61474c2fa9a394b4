"""Which cells of a perturbed condition respond to it, one short file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyro.distributions import TorchDistribution
from torch import Tensor

from ..latents import StructuralNormal
from ..plates import Plates
from .full import Full
from .mixture import Mixture


class Penetrance(Protocol):
    """What the story asks of a penetrance: its sites, then the rate of a condition and the law of its cells.

    A class of your own needs no more than these three methods. A part that can estimate its sites from cells in closed form
    has a method `start` (see `Mixture.start`).
    """

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        """State the sites and return the share of each target's cells that respond, (targets, 1)."""
        ...

    def rate(self, shares: Tensor, design: Tensor) -> Tensor:
        """Share of responding cells of each condition, (conditions,): 1 for control; `design` (conditions, targets) is u."""
        ...

    def law(
        self, rate: Tensor, responding: StructuralNormal, escaped: Callable[[], StructuralNormal]
    ) -> TorchDistribution:
        """p(z_r | z_b, u) of cells whose condition has this rate (cells,), from the laws of its two kinds of cells."""
        ...


__all__ = ["Full", "Mixture", "Penetrance"]
