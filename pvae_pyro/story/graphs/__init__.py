"""Causal graphs among the responsive latents (paper Eqs. 6-9, 59), one short file each."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..plates import Plates
from .causal import CausalGraph
from .environment import EnvironmentGraph
from .fixed import FixedGraph
from .modulated import ModulatedGraph
from .none import NoGraph


class Graph(Protocol):
    """What the story asks of a graph prior: its sites, then L as a pure function of them and of the conditions."""

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        """State the sites and return what `matrix` needs; `like` (latents,) gives size, dtype and device."""
        ...

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        """L, strictly lower triangular: (latents, latents), or (conditions, latents, latents) where it depends on u.

        `design` (conditions, targets) holds doses. A graph whose edges from the background depend on u, too, has a method
        `background(values, design, coupling)` that returns B (conditions, background, latents). One that is lower triangular in
        another order of the latents has a method `order(latents)` that returns it, causes first. Sites that a closed-form
        start knows nothing of, and that are to begin with their prior's spread, are named in `at_prior`.
        """
        ...


__all__ = ["CausalGraph", "EnvironmentGraph", "FixedGraph", "Graph", "ModulatedGraph", "NoGraph"]
