"""How well loadings are known: against least squares, and against errors of axes of planted signals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pvae_pyro.inference.loading_law import axis_known, loading_law
from pvae_pyro.inference.shrinkage import ShrunkShifts, shrink


def planted(rows: int, genes: int, singular: list[float], seed: int) -> tuple[np.ndarray, np.ndarray, ShrunkShifts]:
    """True shifts (rows, genes) of these singular values, their true axes, and what shrinkage makes of them in unit noise."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(singular))))[0] for n in (rows, genes))
    shifts = (left * singular) @ right.T
    return shifts, right.T, shrink(shifts + rng.normal(size=shifts.shape), np.ones(rows), np.ones(genes))


def test_with_many_cells_it_is_the_sampling_covariance_of_least_squares() -> None:
    """Loadings are regressed on known shifts: posterior covariance sd_g^2 (sum_p n_p m_p m_p')^-1 under a flat prior."""
    rng = np.random.default_rng(0)
    unit, outside, n_cells = rng.uniform(0.3, 1, 3), rng.uniform(0.5, 2, 20), rng.integers(10**5, 10**6, 12)
    scores = rng.normal(size=(12, 3)) @ np.array([[1.0, 0.8, 0], [0, 1, 0.5], [0, 0, 0.4]])  # not orthogonal
    scores[0] = 0  # control
    start: Any = SimpleNamespace(unit=unit, outside=outside, scores=scores, score_sd=1 / (unit * np.sqrt(n_cells)[:, None]))
    turn, sd = loading_law(start)
    precision = (scores * n_cells[:, None]).T @ scores
    for gene in (0, 7, 19):
        covariance = (turn * sd[:, gene] ** 2) @ turn.T
        np.testing.assert_allclose(covariance, outside[gene] ** 2 * np.linalg.inv(precision), rtol=1e-3)


@pytest.mark.parametrize(("rows", "genes"), [(80, 500), (500, 80)])
def test_measured_axes_are_as_near_to_true_ones_as_it_says(rows: int, genes: int) -> None:
    found, said = [], []
    for seed in range(12):
        _, axes, shrunk = planted(rows, genes, [140.0, 60.0, 35.0], seed)
        found.append(np.diag(shrunk.right @ axes.T)[:3] ** 2)
        said.append(axis_known(shrunk.values**2, rows, genes)[:3])
    error = np.std(found, axis=0) / np.sqrt(12)
    assert (np.abs(np.mean(found, axis=0) - np.mean(said, axis=0)) < 4 * error + 0.01).all()
    assert np.mean(said, axis=0)[2] < (0.75 if genes > rows else 0.95)  # there is something to be wrong about


def test_an_axis_of_noise_is_no_wider_than_the_bound() -> None:
    assert axis_known(np.array([0.0, 1e-9]), 10, 50).tolist() == [0.2, 0.2]
    assert axis_known(np.array([1e12]), 10, 50) == pytest.approx(1)


def test_errors_of_unseen_pairs_outside_of_the_measured_span_are_as_large_as_it_says() -> None:
    """Total variance of an additive prediction gains w' Var(loadings) w: squared errors of sums of two singles, per gene."""
    rows, genes = 80, 500
    error, expected = [], []
    for seed in range(12):
        shifts, _, shrunk = planted(rows, genes, [140.0, 110.0, 90.0, 70.0], seed)
        known = axis_known(shrunk.values**2, rows, genes)
        pairs = shrunk.scores[::2] + shrunk.scores[1::2]
        missed = shifts[::2] + shifts[1::2]
        missed = missed - missed @ shrunk.right.T @ shrunk.right
        error.append((missed**2).mean())
        expected.append((pairs**2 @ ((1 - known) / (known * genes))).mean())
    # what is left of the scores' own noise adds rows / s^2, one to two per cent
    assert np.mean(error) / np.mean(expected) == pytest.approx(1.0, abs=0.05)
