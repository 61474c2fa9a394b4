"""python -m experiments.all_pairs [--arm sample|all] [--seed N] [--smoke] [--out DIR]: default is the sample."""

from __future__ import annotations

from pathlib import Path

from .. import run_arms
from .arms import arms

if __name__ == "__main__":
    run_arms.main("experiments.all_pairs", __doc__, Path(__file__).parent, arms, "sample")
