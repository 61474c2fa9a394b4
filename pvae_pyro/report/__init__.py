"""The written report: predictions of measured conditions scored beside baselines, with figures."""

from __future__ import annotations

from pvae_pyro.report.write import evaluate_run

__all__ = ["evaluate_run"]
