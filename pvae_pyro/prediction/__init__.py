"""Posterior predictions: joint draws of the globals pushed through every condition; the same for a prior, before any fit."""

from __future__ import annotations

from .plan import ScreenPlan
from .posterior import Contrast, Posterior, Summary, VarianceParts
from .prior import PriorTruth, SimulatedCells
from .prior_summary import PriorSummary
from .request import predict

__all__ = ["Contrast", "Posterior", "PriorSummary", "PriorTruth", "ScreenPlan", "SimulatedCells", "Summary",
           "VarianceParts", "predict"]  # fmt: skip
