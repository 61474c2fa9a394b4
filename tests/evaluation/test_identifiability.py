"""Metrics of identifiability against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.evaluation.identifiability import (
    align_graph,
    label_leakage,
    match,
    mcc,
    mcc_floor,
    r2_kernel,
    r2_linear,
    shd,
)


@pytest.fixture
def z() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, 4))


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_mcc_does_not_see_order_sign_and_scale(z: np.ndarray, kind: str) -> None:
    turned = z[:, [2, 0, 3, 1]] * [3.0, -0.1, -2.0, 1.0] + 5.0
    assert mcc(turned, z, kind) == pytest.approx(1.0)  # type: ignore[arg-type]
    assert match(turned, z).estimated.tolist() == [1, 3, 0, 2]
    assert match(turned, z).sign.tolist() == [-1, 1, 1, -1]


def test_mcc_of_unrelated_latents_is_small_and_a_missing_latent_counts_as_zero(z: np.ndarray) -> None:
    other = np.random.default_rng(1).normal(size=z.shape)
    assert mcc(other, z) < 0.1
    assert mcc(z[:, :3], z) == pytest.approx(0.75)
    assert mcc(np.zeros_like(z), z) == 0.0


def test_matching_is_scored_on_cells_that_did_not_choose_it() -> None:
    z = np.random.default_rng(0).normal(size=(40, 1))
    found = np.vstack([z[:20], np.random.default_rng(1).normal(size=(20, 1))])
    assert mcc(found, z) < 0.6  # matched on the first half it would be 1


def test_spearman_does_not_see_a_monotone_map_and_pearson_does(z: np.ndarray) -> None:
    assert mcc(np.exp(2 * z), z, "spearman") == pytest.approx(1.0)
    assert mcc(np.exp(2 * z), z) < 0.8


@pytest.mark.parametrize(("size", "value", "give"), [(3, 0.83, 0.08), (5, 0.72, 0.06), (8, 0.64, 0.05)])
def test_the_floor_is_near_the_published_one(size: int, value: float, give: float) -> None:
    truth = np.random.default_rng(2).normal(size=(1000, size))
    assert abs(mcc_floor(truth, draws=60) - value) < give


def test_block_r2_is_one_for_an_invertible_map_and_six_sevenths_without_one_of_seven() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(800, 7))
    assert r2_linear(z @ rng.normal(size=(7, 7)), z) == pytest.approx(1.0)
    assert r2_linear(z[:, :6], z) == pytest.approx(6 / 7, abs=0.02)


def test_kernel_ridge_sees_a_curved_map_that_a_line_does_not() -> None:
    rng = np.random.default_rng(4)
    source = rng.normal(size=(600, 1))
    target = source**2
    assert r2_linear(source, target) < 0.1
    assert r2_kernel(source, target) > 0.95
    assert r2_kernel(rng.normal(size=(600, 1)), target) < 0.1


def test_label_leakage_is_the_share_of_variance_between_conditions() -> None:
    rng = np.random.default_rng(5)
    code = np.repeat(np.arange(4), 250)
    z = rng.normal(size=(1000, 2))
    assert abs(label_leakage(z, code)) < 0.01
    moved = z + np.array([-1.5, -0.5, 0.5, 1.5])[code][:, None]  # variance 1.25 between, 1 within
    assert label_leakage(moved, code) == pytest.approx(1.25 / 2.25, abs=0.04)


def test_an_aligned_graph_is_the_true_one(z: np.ndarray) -> None:
    graph = np.array([[0, 0, 0, 0], [0.5, 0, 0, 0], [0, -0.8, 0, 0], [0.3, 0, 0.6, 0]])
    unit = z / z.std(0)
    order, scale = np.array([2, 0, 3, 1]), np.array([3.0, -0.1, -2.0, 1.0])
    found = unit[:, order] * scale
    turned = scale[:, None] * graph[order][:, order] / scale[None]
    assert align_graph(turned, found, unit) == pytest.approx(graph)
    assert align_graph(np.stack([turned, turned]), found, unit).shape == (2, 4, 4)


def test_shd_counts_a_missing_and_a_reversed_edge_once() -> None:
    graph = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert shd(graph, graph) == 0
    assert shd(graph, graph.T) == 2
    assert shd(graph, np.zeros((3, 3))) == 2
    assert shd(graph, 0.05 * np.ones((3, 3)), threshold=0.1) == 2


def test_unlike_shapes_and_values_that_are_not_finite_are_refused(z: np.ndarray) -> None:
    with pytest.raises(ValueError, match="same"):
        mcc(z[:-1], z)
    with pytest.raises(ValueError, match="finite"):
        r2_linear(np.where(z > 3, np.nan, z) * np.inf, z)
