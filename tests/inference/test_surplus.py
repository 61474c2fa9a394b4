"""What combinations do outside the span of the loadings: its size comes back, and noise is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.inference.covariance import CellVariation
from pvae_pyro.inference.surplus import PRIOR_WORTH, outside_unit
from pvae_pyro.inference.warm_start import Start
from pvae_pyro.story.composition import Interaction

GENES, CONDITIONS, LATENTS, CELLS = 400, 90, 3, 150
PART = Interaction(outside=0.1, surprise_spread=0.2)
STATED = 0.1 * np.exp(0.2**2)  # root of outside^2 times the mean square of surprise


def start(size: float, seed: int = 0) -> Start:
    """Conditions whose shifts are in the span but for residuals of `size` gene sds in the last 40, and sampling noise."""
    rng = np.random.default_rng(seed)
    sd = rng.uniform(0.2, 2.0, GENES)
    directions = np.linalg.qr(rng.normal(size=(GENES, 4)))[0]
    means, values = np.zeros((CONDITIONS, GENES)), np.array([9.0, 6.0, 3.0, 2.0])
    variation = CellVariation(means, np.zeros((1, GENES)), sd, directions, values, 0.96)
    level, slope = rng.uniform(0, 2, GENES), rng.uniform(0.3, 1.0, GENES)
    responsive, scores = rng.normal(size=(LATENTS, GENES)) * sd / slope, rng.normal(size=(CONDITIONS, LATENTS))
    noise = variation.unwhiten(rng.normal(size=(CONDITIONS, GENES))) / np.sqrt(CELLS)
    residual = size * sd * rng.normal(size=(CONDITIONS, GENES))
    residual[:50] = 0
    variation.means[:] = level + scores @ (responsive * slope) + residual + noise
    unit = np.full(LATENTS, 0.5)
    return Start(
        unit=unit, intercept=level[None], centre=level[None], responsive=responsive, background=np.zeros((1, GENES)),
        scores=scores,
        score_sd=np.full((CONDITIONS, LATENTS), 1 / (0.5 * np.sqrt(CELLS))), scale=np.ones(LATENTS), noise=sd, slope=slope,
        outside=sd / slope, level=level, variation=variation, penetrance={},
    )  # fmt: skip


@pytest.mark.parametrize("multiple", [0.0, 0.5, 1.0, 3.0])
def test_the_size_of_residuals_comes_back(multiple: float) -> None:
    rows = np.arange(50, CONDITIONS)
    found = outside_unit(start(multiple * STATED), rows, PART)
    # the prior's own size is worth PRIOR_WORTH combinations of 40 + PRIOR_WORTH
    expected = np.sqrt((40 * multiple**2 + PRIOR_WORTH) / (40 + PRIOR_WORTH))
    # loadings are the true ones here, not chosen on these shifts: of the noise 3 % more is left than the formula takes off
    noise = (1 / 0.1**2 / CELLS) * LATENTS / CONDITIONS
    # mean squares of 16,000 residuals and noises: 1.1 % of them, four times over
    slack = noise + 4 * np.sqrt(2 / (40 * GENES)) * (multiple**2 + 1 / 0.1**2 / CELLS)
    assert abs(found**2 - expected**2) < 1.2 * slack


def test_without_combinations_or_residuals_the_prior_stands() -> None:
    assert outside_unit(start(STATED), np.arange(0), PART) == 1.0
    assert outside_unit(start(STATED), np.arange(50, 90), Interaction(outside=0.0)) == 1.0


def test_it_does_not_move_with_the_units_of_genes() -> None:
    rows, one = np.arange(50, CONDITIONS), start(STATED)
    factor = np.random.default_rng(1).uniform(0.1, 10, GENES)
    v = one.variation
    scaled = CellVariation(v.means * factor, v.batch_effects, v.sd * factor, v.directions, v.values, v.rest)
    other = Start(**{**vars(one), "variation": scaled, "level": one.level * factor, "responsive": one.responsive * factor})
    assert outside_unit(other, rows, PART) == pytest.approx(outside_unit(one, rows, PART), rel=1e-9)
