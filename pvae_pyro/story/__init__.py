"""The generative story and its replaceable parts."""

from __future__ import annotations

from .alignment import MMD, Centroid, NoAlignment, Pairwise
from .composition import Additive, Bilinear, Interaction, Saturating
from .effects import Horseshoe, LaplaceEffects, NormalEffects, SpikeSlab
from .graphs import CausalGraph, FixedGraph, ModulatedGraph, NoGraph
from .likelihoods import Gaussian, NegativeBinomial, StudentT
from .loadings import UncertainLoadings
from .model import Cells, Globals, PerturbedVAE, Story
from .penetrance import Full, Mixture

# Names of the parts in a TOML configuration.
PARTS: dict[str, dict[str, type]] = {
    "effects": {"spike-slab": SpikeSlab, "horseshoe": Horseshoe, "laplace": LaplaceEffects, "normal": NormalEffects},
    "graph": {"causal": CausalGraph, "modulated": ModulatedGraph, "fixed": FixedGraph, "none": NoGraph},
    "composition": {"saturating": Saturating, "additive": Additive, "bilinear": Bilinear},
    "interaction": {"normal": Interaction},
    "alignment": {"centroid": Centroid, "pairwise": Pairwise, "mmd": MMD, "none": NoAlignment},
    "penetrance": {"off": Full, "on": Mixture},
    "likelihood": {"gaussian": Gaussian, "negative-binomial": NegativeBinomial, "student-t": StudentT},
    "loadings": {"uncertain": UncertainLoadings},
}

__all__ = [
    "MMD", "PARTS", "Additive", "Bilinear", "CausalGraph", "Cells", "Centroid", "FixedGraph", "Full", "Gaussian",
    "Globals", "Horseshoe", "Interaction", "LaplaceEffects", "Mixture", "ModulatedGraph", "NegativeBinomial",
    "NoAlignment", "NoGraph", "NormalEffects", "Pairwise", "PerturbedVAE", "Saturating", "SpikeSlab", "Story",
    "StudentT", "UncertainLoadings",
]  # fmt: skip
