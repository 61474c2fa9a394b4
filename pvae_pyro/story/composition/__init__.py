"""How effects of several targets combine: m_d = compose({u_p w_p}) + eta_d (design 2), one short file each."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..plates import Plates
from .additive import Additive
from .bilinear import Bilinear
from .interaction import Interaction
from .saturating import Saturating
from .scale import is_combination
from .separate import Separate


class Composition(Protocol):
    """What the story asks of a composition: its sites, then a pure function of the design and the effects.

    A class of your own needs no more than these two methods: with combinations in training a warm start puts its sites at
    their most probable values given the closed-form shifts, by itself.
    """

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        """State the sites and return the values that `compose` needs."""
        ...

    def compose(self, values: dict[str, Any], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        """Mean effect of each condition, shape (conditions, latents).

        `design` (conditions, targets) holds doses, `effects` (targets, latents) is w, and `unit` (latents,) is the
        number of control-cell standard deviations in one unit of each latent. `values` holds the part's fixed axes, too, if
        it has any (`buffers(latents) -> dict`, see `Bilinear`). One whose `predicts_new` is False has predictions of combinations
        that were not trained refused.
        """
        ...


__all__ = ["Additive", "Bilinear", "Composition", "Interaction", "Saturating", "Separate", "is_combination"]
