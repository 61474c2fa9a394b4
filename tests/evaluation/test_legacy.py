"""Legacy metrics of cells against plain loops, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.evaluation import legacy


def test_mmd_is_the_sum_of_ten_kernels_with_every_cell_met_by_itself() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(4, 3)) * 5, random.normal(size=(4, 3)) * 9 + 4
    total = 0.0
    for width in [1000 / 2**5 * 2**i for i in range(10)]:

        def k(a: np.ndarray, b: np.ndarray, width: float = width) -> float:
            return float(np.exp(-((a - b) ** 2).sum() / width))

        total += np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(y[i], x[j]) for i in range(4) for j in range(4)])
    assert legacy.mmd_legacy(x, y) == pytest.approx(total, rel=1e-12)
    assert legacy.mmd_legacy(x, y) == pytest.approx(legacy.mmd_legacy(y, x))
    assert legacy.mmd_legacy(x, x) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="as many predicted cells"):
        legacy.mmd_legacy(x, y[:3])


def test_mmd_of_two_samples_of_one_law_is_above_zero() -> None:
    random = np.random.default_rng(1)
    values = [legacy.mmd_legacy(*random.normal(size=(2, 8, 40))) for _ in range(20)]
    assert min(values) > 0.1


def test_r2_of_cells_prefers_a_constant_to_a_perfect_sampler() -> None:
    random = np.random.default_rng(2)
    cells, perfect = random.normal(3.0, 1.0, size=(2, 4000, 5))
    mean = np.tile(cells.mean(axis=0), (4000, 1))
    assert legacy.r2_cells(mean, cells) == pytest.approx(0.0, abs=1e-12)
    assert legacy.r2_cells(perfect, cells) == pytest.approx(-1.0, abs=0.05)
    assert legacy.r2_cells(mean + 0.5, cells) == pytest.approx(-0.25, abs=0.02)
    assert np.isnan(legacy.r2_cells(np.ones((3, 2)), np.full((3, 2), 7.0)))


def test_top_genes_are_ordered_by_welch_and_leave_dropouts_out() -> None:
    truth = np.array([[1.0, 0.0, 5.0, 2.0, 0.0]])
    control = (np.array([1.0, 9.0, 3.0, 2.5, 0.0]), np.full(5, 0.5), 50)
    (genes,) = legacy.top_de_genes(truth, np.full((1, 5), 0.5), [40], control, count=3)
    # gene 1 fell to zero in every cell, which counts as dropout; 0 and 4 did not move, the first goes first
    assert genes.tolist() == [2, 3, 0]
