"""Point estimates of the globals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.distributions import Delta

from .amortized import Amortized
from .family import Family
from .sites import Site


@dataclass(frozen=True)
class Map(Amortized):
    """Amortized latents with point estimates of the continuous globals: the mode of their posterior.

    The mode of the density on each site's own (constrained) scale, as Pyro's AutoDelta has it; it is another one on another
    scale. A prior whose density has no bound there, such as a Beta of strength below 1 at its ends, may pull a site to it.
    Gates stay Bernoulli, drawn hard, and interactions and residuals of trained combinations normal. Predictions know
    only these, the interaction prior, and the noise of finitely many cells: their intervals are too narrow.
    """

    def family(self, sites: list[Site]) -> Family:
        return Points(sites, self.initial_scale)


class Points(Family):
    """Every continuous site at support(loc). `log_scale` is not learnt."""

    def __init__(self, sites: list[Site], initial_scale: float) -> None:
        super().__init__(sites, initial_scale)
        self.log_scale.requires_grad_(False)

    def laws(self) -> dict[str, Any]:
        centre = self.centre()
        return {name: Delta(centre[name], event_dim=self.sites[name].event_dim) for name in self.loc}
