"""Variational families, independent of the priors they approximate."""

from __future__ import annotations

from .amortized import Amortized, AmortizedGuide
from .ensemble import Ensemble
from .flow import Flow
from .gates import GateBernoulli
from .low_rank import LowRank
from .point import Map
from .sampled import Sampled, SampledGuide

# Names of the guides in a TOML configuration.
GUIDES: dict[str, type] = {"amortized": Amortized, "low-rank": LowRank, "flow": Flow, "map": Map, "ensemble": Ensemble,
                           "sampled": Sampled}  # fmt: skip

__all__ = [
    "GUIDES", "Amortized", "AmortizedGuide", "Ensemble", "Flow", "GateBernoulli", "LowRank", "Map", "Sampled", "SampledGuide",
]  # fmt: skip
