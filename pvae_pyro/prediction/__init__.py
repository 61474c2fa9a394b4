"""Posterior predictions: joint draws of the globals pushed through every condition."""

from __future__ import annotations

from .posterior import Contrast, Posterior, Summary
from .request import predict

__all__ = ["Contrast", "Posterior", "Summary", "predict"]
