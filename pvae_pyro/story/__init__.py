"""The generative story and its replaceable parts."""

from __future__ import annotations

from .alignment import Centroid, NoAlignment
from .composition import Additive, Interaction, Saturating
from .effects import NormalEffects, SpikeSlab
from .graphs import CausalGraph, NoGraph
from .likelihoods import Gaussian, NegativeBinomial
from .model import Cells, Globals, PerturbedVAE, Story

# Names of the parts in a TOML configuration.
PARTS: dict[str, dict[str, type]] = {
    "effects": {"spike-slab": SpikeSlab, "normal": NormalEffects},
    "graph": {"causal": CausalGraph, "none": NoGraph},
    "composition": {"saturating": Saturating, "additive": Additive},
    "interaction": {"normal": Interaction},
    "alignment": {"centroid": Centroid, "none": NoAlignment},
    "likelihood": {"gaussian": Gaussian, "negative-binomial": NegativeBinomial},
}

__all__ = [
    "PARTS", "Additive", "CausalGraph", "Cells", "Centroid", "Gaussian", "Globals", "Interaction", "NegativeBinomial",
    "NoAlignment", "NoGraph", "NormalEffects", "PerturbedVAE", "Saturating", "SpikeSlab", "Story",
]  # fmt: skip
