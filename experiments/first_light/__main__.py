"""python -m experiments.first_light [--arm NAME] [--seed N] [--smoke] [--out DIR]: run what results.csv does not hold yet."""

from __future__ import annotations

from pathlib import Path

from .. import run_arms
from .arms import arms, seeds_of

if __name__ == "__main__":
    run_arms.main("experiments.first_light", __doc__, Path(__file__).parent, arms, "norman-cells-gaussian", seeds_of)
