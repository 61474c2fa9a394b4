"""Sizes of effects: shifts of the same law have the same sizes, and a factor shows as that factor."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.ppc.checks import effect_sizes


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_quantiles_are_multiples_of_the_measured_ones(factor: float) -> None:
    rng = np.random.default_rng(0)
    genes = np.arange(500) < 400
    measured, drawn = rng.normal(size=(40, 500)), factor * rng.normal(size=(60, 40, 500))
    measured[:, ~genes] = 100.0  # genes that do not count
    found = effect_sizes(drawn, measured, genes)
    # 16,000 values: the standard error of a 99 % quantile is 1.2 % of it
    for q in (90, 99):
        assert found[f"effects_q{q}"] == pytest.approx(factor, rel=0.05)
    assert (found["effects_p"] == {0.5: 0.0, 2.0: 1.0}[factor]) if factor != 1 else 0 < found["effects_p"] < 1
