"""python -m experiments.rivals [--arm NAME] [--seed N] [--smoke] [--out DIR]: run what results.csv does not hold yet."""

from __future__ import annotations

from pathlib import Path

from .. import run_arms
from .arms import SMOKE, arms, seeds_of

if __name__ == "__main__":
    run_arms.main("experiments.rivals", __doc__, Path(__file__).parent, arms, SMOKE, seeds_of)
