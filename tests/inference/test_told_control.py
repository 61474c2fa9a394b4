"""The control mean told from all conditions: its own noise goes, what perturbations have in common stays."""

from __future__ import annotations

import numpy as np

from pvae_pyro.inference.covariance import CellVariation
from pvae_pyro.inference.warm_start import _told_control

CONDITIONS, GENES, CELLS, CONTROLS, LATENTS = 60, 400, 100, 200, 3


def measured(seed: int, common: float = 0.0) -> tuple[CellVariation, np.ndarray]:
    """Means of a control (row 0) and of conditions with shifts of rank three, a mean shift of length `common` among them; the
    true control mean. Cells have unit covariance after whitening."""
    rng = np.random.default_rng(seed)
    sd = rng.uniform(0.3, 2.0, GENES)
    directions, values = np.linalg.qr(rng.normal(size=(GENES, 4)))[0], np.array([8.0, 5.0, 3.0, 2.0])
    variation = CellVariation(np.zeros((CONDITIONS + 1, GENES)), np.zeros((1, GENES)), sd, directions, values, 0.97)
    axes = np.linalg.qr(rng.normal(size=(GENES, LATENTS)))[0].T
    shifts = rng.normal(size=(CONDITIONS, LATENTS)) * 1.5
    shifts[:, 0] += common
    n = np.array([CONTROLS] + [CELLS] * CONDITIONS)
    noise = rng.normal(size=(CONDITIONS + 1, GENES)) / np.sqrt(n)[:, None]
    truth = rng.uniform(0, 3, GENES)
    variation.means[:] = truth + variation.unwhiten(np.vstack([np.zeros((1, GENES)), shifts @ axes]) + noise)
    return variation, truth


def left(seed: int, common: float = 0.0) -> tuple[float, float]:
    """Mean squared error of the control mean, in variances of a cell, as measured and as told."""
    variation, truth = measured(seed, common)
    told = _told_control(variation, 0, np.array([CONTROLS] + [CELLS] * CONDITIONS, dtype=float))
    assert np.array_equal(told.means[1:], variation.means[1:])
    errors = [variation.whiten((one.means[0] - truth)[None])[0] for one in (variation, told)]
    return float((errors[0] ** 2).mean()), float((errors[1] ** 2).mean())


def test_noise_of_the_control_is_told_by_all_conditions() -> None:
    found = np.array([left(seed) for seed in range(10)])
    # measured: 1 / controls. Told: 1 / all cells, and three directions of shifts in which it cannot be told from their mean
    assert abs(found[:, 0].mean() * CONTROLS - 1) < 4 * np.sqrt(2 / GENES / 10)
    best = 1 / (CONTROLS + CONDITIONS * CELLS) + LATENTS / GENES / CONTROLS
    assert best * 0.8 < found[:, 1].mean() < 3 * best < 0.3 * found[:, 0].mean()


def test_what_all_perturbations_do_is_not_taken_for_noise() -> None:
    found = np.array([left(seed, common=3.0) for seed in range(10)])
    # a common shift of nine cell variances, spread over 400 genes, would leave 0.0225 if it went into the control
    assert found[:, 1].mean() < 0.05 * 9.0 / GENES and found[:, 1].mean() < 0.5 * found[:, 0].mean()
