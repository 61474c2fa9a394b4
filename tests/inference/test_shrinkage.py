"""Optimal shrinkage: noise vanishes, signal comes back, and the result does not depend on units or order."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.inference.shrinkage import noise_sd, shrink

pytestmark = pytest.mark.filterwarnings("error")


def spiked(rng: np.random.Generator, rows: int, genes: int, strengths: tuple[float, ...]):  # type: ignore[no-untyped-def]
    """Signal of known singular values (in units of sqrt(longer side)) in unequal noise."""
    u = np.linalg.qr(rng.normal(size=(rows, len(strengths))))[0]
    v = np.linalg.qr(rng.normal(size=(genes, len(strengths))))[0]
    scaled = (u * np.array(strengths) * np.sqrt(max(rows, genes))) @ v.T
    cells, sd = rng.integers(20, 400, size=rows), rng.uniform(0.1, 2.0, size=genes)
    unit = sd / np.sqrt(cells)[:, None]
    return scaled * unit, (scaled + rng.normal(size=(rows, genes))) * unit, cells, sd


@pytest.mark.parametrize("shape", [(50, 400), (400, 50), (80, 80), (1, 300)])
def test_pure_noise_has_no_rank(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(20):
        noise = spiked(rng, *shape, (1.0,))
        shifts = noise[1] - noise[0]
        ranks.append(shrink(shifts, noise[2], noise[3]).rank)
    assert np.mean(np.array(ranks) == 0) >= 0.6  # the edge of a random matrix fluctuates about the threshold
    assert max(ranks) <= 1


@pytest.mark.parametrize("shape", [(60, 500), (500, 60)])
def test_spikes_are_recovered_in_rank_and_size(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    strengths = (6.0, 4.0, 2.5)
    truth, measured, cells, sd = spiked(rng, *shape, strengths)
    result = shrink(measured, cells, sd)
    weight = np.sqrt(cells)[:, None] / sd
    assert result.rank == 3
    # optimal values are inner products of estimated and true directions, a little below the truth
    cosine = np.diag(result.left.T @ (truth * weight) @ result.right.T) / np.sqrt(max(shape))
    np.testing.assert_allclose(result.values / np.sqrt(max(shape)), cosine, rtol=0.06)
    assert (result.values / np.sqrt(max(shape)) < strengths).all()
    error = (((result.shifts - truth) * weight) ** 2).sum()
    plain = np.linalg.svd(measured * weight, full_matrices=False)
    truncated = (plain[0][:, :3] * plain[1][:3]) @ plain[2][:3]
    assert error < ((truncated - truth * weight) ** 2).sum() < (((measured - truth) * weight) ** 2).sum() / 4


def test_a_strong_signal_is_hardly_shrunk() -> None:
    rng = np.random.default_rng(2)
    truth, measured, cells, sd = spiked(rng, 30, 200, (1e4,))
    result = shrink(measured, cells, sd)
    np.testing.assert_allclose(result.values, 1e4 * np.sqrt(200), rtol=1e-4)
    np.testing.assert_allclose(result.shifts, truth, atol=1e-3 * np.abs(truth).max())


def test_values_follow_the_published_formula() -> None:
    rng = np.random.default_rng(3)
    _, measured, cells, sd = spiked(rng, 40, 250, (5.0, 2.0))
    y = np.linalg.svd(measured * np.sqrt(cells)[:, None] / sd, compute_uv=False) / np.sqrt(250)
    beta = 40 / 250
    kept = y[y > 1 + np.sqrt(beta)]
    expected = np.sqrt((kept**2 - beta - 1) ** 2 - 4 * beta) / kept * np.sqrt(250)
    np.testing.assert_allclose(shrink(measured, cells, sd).values, expected)


def test_order_of_genes_and_conditions_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    _, measured, cells, sd = spiked(rng, 20, 90, (4.0, 3.0))
    rows, genes = rng.permutation(20), rng.permutation(90)
    expected = shrink(measured, cells, sd).shifts[rows][:, genes]
    found = shrink(measured[rows][:, genes], cells[rows], sd[genes]).shifts
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_units_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    _, measured, cells, sd = spiked(rng, 20, 90, (4.0, 3.0))
    base = shrink(measured, cells, sd)
    per_gene = rng.uniform(0.1, 10, size=90)
    np.testing.assert_allclose(
        shrink(measured * per_gene, cells, sd * per_gene).shifts, base.shifts * per_gene
    )
    np.testing.assert_allclose(shrink(measured / 3, cells * 9, sd).shifts, base.shifts / 3)


def test_scores_times_loadings_are_the_shifts() -> None:
    rng = np.random.default_rng(6)
    _, measured, cells, sd = spiked(rng, 25, 120, (5.0, 3.0))
    result = shrink(measured, cells, sd)
    np.testing.assert_allclose(result.scores @ result.loadings, result.shifts, atol=1e-12)
    np.testing.assert_allclose(result.project(result.shifts), result.scores, atol=1e-10)
    np.testing.assert_allclose(result.right @ result.right.T, np.eye(result.rank), atol=1e-10)


def test_genes_without_noise_take_no_part() -> None:
    rng = np.random.default_rng(7)
    _, measured, cells, sd = spiked(rng, 25, 120, (5.0, 3.0))
    silent = np.hstack([measured, np.zeros((25, 100))])
    result = shrink(silent, cells, np.append(sd, np.zeros(100)))
    np.testing.assert_allclose(result.shifts[:, :120], shrink(measured, cells, sd).shifts, atol=1e-12)
    assert not result.shifts[:, 120:].any() and not result.loadings[:, 120:].any()
    empty = shrink(np.zeros((3, 4)), np.ones(3), np.zeros(4))
    assert empty.rank == 0 and not empty.shifts.any()


@pytest.mark.parametrize("cells", [[1.0, 2.0, 3.0], [1.0, 0.0]])
def test_wrong_shapes_and_counts_are_refused(cells: list[float]) -> None:
    with pytest.raises(ValueError):
        shrink(np.ones((2, 4)), cells, np.ones(4))


def test_noise_sd_is_a_mean_over_conditions_of_two_cells_or_more() -> None:
    variance = np.array([[1.0, 4.0], [9.0, 16.0], [0.0, 0.0]])
    np.testing.assert_allclose(noise_sd(variance, [5, 2, 1]), [2.0, 3.0])
    np.testing.assert_allclose(noise_sd(variance, [1, 1, 1]), [0.0, 0.0])
