"""PerturbedVAE as a probabilistic program: what would an unmeasured combination of perturbations look like, and how sure are we?

    import pvae_pyro as pv
    screen = pv.Screen.from_anndata("screen.h5ad", "condition")
    split = pv.split_screen(screen, "singles")
    fit = pv.fit(pv.PerturbedVAE(), split.train)
    posterior = fit.predict(["A+B"], draws=200)

Names are loaded on first use, so that importing the package does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, evaluation, presets, simulate
    from .errors import InputError
    from .evaluation import Prediction
    from .evaluation.baselines import baselines
    from .evaluation.compare import Comparison, compare
    from .evaluation.cross_validation import CrossValidation, cross_validate
    from .evaluation.scores import evaluate
    from .guides import Amortized, Ensemble, Flow, LowRank, Map, Sampled
    from .inference import Finding, Fit, FitSettings, NotFinite, agreeing_edges, fit
    from .prediction import Contrast, Posterior, PriorSummary, ScreenPlan, SimulatedCells, VarianceParts
    from .report import evaluate_run
    from .screen import ConditionSummary, Screen
    from .splits import Split, split_screen
    from .story import (
        MMD,
        Additive,
        Bilinear,
        CausalGraph,
        Centroid,
        FixedGraph,
        Full,
        Gaussian,
        Horseshoe,
        Interaction,
        LaplaceEffects,
        Mixture,
        ModulatedGraph,
        NegativeBinomial,
        NoAlignment,
        NoGraph,
        NormalEffects,
        Pairwise,
        PerturbedVAE,
        Saturating,
        SpikeSlab,
        StudentT,
        UncertainLoadings,
    )

try:
    __version__ = version("pvae-pyro")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"

_WHERE = {
    "errors": ("InputError",),
    "evaluation": ("Prediction",),
    "evaluation.scores": ("evaluate",),
    "evaluation.baselines": ("baselines",),
    "evaluation.compare": ("Comparison", "compare"),
    "evaluation.cross_validation": ("CrossValidation", "cross_validate"),
    "guides": ("Amortized", "Ensemble", "Flow", "LowRank", "Map", "Sampled"),
    "inference": ("Finding", "Fit", "FitSettings", "NotFinite", "agreeing_edges", "fit"),
    "prediction": ("Contrast", "Posterior", "PriorSummary", "ScreenPlan", "SimulatedCells", "VarianceParts"),
    "report": ("evaluate_run",),
    "screen": ("ConditionSummary", "Screen"),
    "splits": ("Split", "split_screen"),
    "story": (
        "MMD", "Additive", "Bilinear", "CausalGraph", "Centroid", "FixedGraph", "Full", "Gaussian", "Horseshoe",
        "Interaction", "LaplaceEffects", "Mixture", "ModulatedGraph", "NegativeBinomial", "NoAlignment", "NoGraph",
        "NormalEffects", "Pairwise", "PerturbedVAE", "Saturating", "SpikeSlab", "StudentT", "UncertainLoadings",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "MMD", "Additive", "Amortized", "Bilinear", "CausalGraph", "Centroid", "Comparison", "ConditionSummary", "Contrast",
    "CrossValidation", "Ensemble", "Finding", "Fit", "FitSettings", "FixedGraph", "Flow", "Full", "Gaussian", "Horseshoe",
    "InputError", "Interaction", "LaplaceEffects", "LowRank", "Map", "Mixture", "ModulatedGraph", "NegativeBinomial",
    "NoAlignment", "NoGraph", "NormalEffects", "NotFinite", "Pairwise", "PerturbedVAE", "Posterior", "Prediction",
    "PriorSummary", "Sampled", "Saturating", "Screen", "ScreenPlan", "SimulatedCells", "SpikeSlab", "Split",
    "StudentT", "UncertainLoadings", "VarianceParts", "__version__", "agreeing_edges", "baselines", "compare", "cross_validate",
    "datasets", "evaluate", "evaluate_run", "evaluation", "fit", "presets", "simulate", "split_screen",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name in ("datasets", "evaluation", "presets", "simulate"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
