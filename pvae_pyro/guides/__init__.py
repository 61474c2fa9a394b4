"""Variational families, independent of the priors they approximate."""

from __future__ import annotations

from .amortized import Amortized, AmortizedGuide
from .gates import GateBernoulli

# Names of the guides in a TOML configuration.
GUIDES: dict[str, type] = {"amortized": Amortized}

__all__ = ["GUIDES", "Amortized", "AmortizedGuide", "GateBernoulli"]
