"""Simulated worlds: the stated truth is the truth of the cells."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

import pvae_pyro.simulate
from pvae_pyro.errors import InputError
from pvae_pyro.simulate import PRESETS, SimulatedScreen, Truth, World, simulate

TINY: dict[str, Any] = {
    "cells_per_condition": 2,
    "cells_spread": 0.0,
    "controls": 2,
    "genes": 4,
    "doubles": 0,
}


@pytest.fixture(scope="module")
def default() -> SimulatedScreen:
    return simulate("default", seed=0)


@pytest.fixture(scope="module")
def linear() -> SimulatedScreen:
    return simulate("linear-gaussian", seed=0)


def dense(screen: SimulatedScreen) -> np.ndarray:
    matrix = screen.adata.X
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float64)


def shifts(truth: Truth, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, G): shift of every pair, and the sum of its singles' shifts."""
    pairs = [row for row, name in enumerate(truth.conditions) if name.count("+") == 1]
    measured = mean[pairs] - mean[0]
    summed = [sum(mean[truth.index(t)] - mean[0] for t in truth.conditions[row].split("+")) for row in pairs]
    return measured, np.array(summed)


def in_band(statistic: float, degrees: float, level: float = 0.999) -> bool:
    low, high = stats.chi2.interval(level, degrees)
    return bool(low < statistic < high)


def signal_covariance(truth: Truth, condition: int) -> np.ndarray:
    """(K, K) covariance of z_r within a condition by plain matrix inversion, no shared code."""
    reach = np.linalg.inv(np.eye(len(truth.graph)) - truth.graph)
    variance = np.exp(np.clip(truth.design[condition] @ truth.noise_log_variance, -2, 2))
    drive = truth.background_to_responsive
    return np.asarray(reach @ (drive @ drive.T + np.diag(variance)) @ reach.T)


def expression_covariance(truth: Truth, condition: int) -> np.ndarray:
    reach = np.linalg.inv(np.eye(len(truth.graph)) - truth.graph)
    variance = np.exp(np.clip(truth.design[condition] @ truth.noise_log_variance, -2, 2))
    total = truth.loadings_responsive @ reach
    shared = truth.loadings_background + total @ truth.background_to_responsive
    assert truth.noise_sd is not None
    return np.asarray(shared @ shared.T + (total * variance) @ total.T + np.diag(truth.noise_sd**2))


# --- what is drawn


@pytest.mark.parametrize("preset", PRESETS)
def test_same_seed_same_cells_and_no_warning(preset: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second, other = (
            simulate(preset, seed=seed, genes=30, controls=60, cells_per_condition=9) for seed in (4, 4, 5)
        )
    np.testing.assert_array_equal(dense(first), dense(second))
    assert first.adata.obs.equals(second.adata.obs)
    for field in dataclasses.fields(Truth):
        left, right = getattr(first.truth, field.name), getattr(second.truth, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first.truth.effects, other.truth.effects)


def test_parts_have_streams_of_their_own() -> None:
    first = simulate("linear-gaussian", seed=3).truth
    second = simulate(
        "linear-gaussian", seed=3, cells_per_condition=7, edge_probability=0.9, interaction=0.0
    ).truth
    np.testing.assert_array_equal(first.effects, second.effects)
    np.testing.assert_array_equal(first.loadings_responsive, second.loadings_responsive)
    assert first.conditions == second.conditions
    assert not np.array_equal(first.graph, second.graph)


def test_graph_is_strictly_lower_triangular_and_sparse() -> None:
    graph = simulate(seed=1, responsive=80, **TINY).truth.graph
    assert np.all(np.triu(graph) == 0)
    edges, possible = np.count_nonzero(graph), 80 * 79 // 2
    assert stats.binomtest(edges, possible, PRESETS["default"].edge_probability).pvalue > 1e-3


def test_gates_and_effects_follow_their_prior() -> None:
    truth = simulate(seed=2, targets=300, responsive=20, gate_probability=0.2, effect_size=1.5, **TINY).truth
    assert stats.binomtest(int(truth.gates.sum()), truth.gates.size, 0.2).pvalue > 1e-3
    np.testing.assert_array_equal(truth.effects != 0, truth.gates)
    open_effects = truth.effects[truth.gates] / 1.5
    assert in_band(float((open_effects**2).sum()), len(open_effects))


def test_composition_and_interactions_against_loops() -> None:
    truth = simulate(
        seed=5,
        doubles=200,
        triples=100,
        responsive=12,
        gate_probability=0.9,
        **{k: TINY[k] for k in TINY if k != "doubles"},
    ).truth
    total, count = 0.0, 0
    for row, name in enumerate(truth.conditions):
        members = [] if name == "control" else [truth.targets.index(t) for t in name.split("+")]
        np.testing.assert_array_equal(np.flatnonzero(truth.design[row]), members)
        expected = sum((truth.effects[t] for t in members), np.zeros(12))
        if len(members) >= 2:
            products = sum(
                abs(truth.effects[p] * truth.effects[q]) for p, q in itertools.combinations(members, 2)
            )
            width = truth.kappa * np.sqrt(truth.interaction_floor**2 + products)
            eta = truth.interactions[name]
            total, count = total + float(((eta / width) ** 2).sum()), count + 12
            expected = truth.scale * expected + eta
        else:
            assert name not in truth.interactions
        np.testing.assert_allclose(truth.m[row], expected, atol=1e-12)
    assert count == 300 * 12
    assert in_band(total, count)
    np.testing.assert_allclose(truth.latent_mean, truth.latent_mean @ truth.graph.T + truth.m, atol=1e-12)


# --- the cells agree with the truth


def test_linear_gaussian_means_and_covariances_are_exact(linear: SimulatedScreen) -> None:
    truth, values = linear.truth, dense(linear)
    assert truth.condition_mean is not None and linear.world.batches == 1
    of_means, of_cells = 0.0, 0.0
    for row in range(len(truth.conditions)):
        precision = np.linalg.inv(expression_covariance(truth, row))
        residual = values[truth.cells.condition == row] - truth.condition_mean[row]
        of_means += len(residual) * float(residual.mean(0) @ precision @ residual.mean(0))
        of_cells += float(np.einsum("ng,gh,nh->", residual, precision, residual))
    assert in_band(of_means, len(truth.conditions) * values.shape[1])
    assert in_band(of_cells, values.size)


@pytest.mark.parametrize("overrides", [{}, {"escape": 0.3}, {"batches": 4}, {"saturation": None}])
def test_gaussian_condition_means_with_saturation_escape_and_batches(overrides: dict[str, Any]) -> None:
    screen = simulate(
        "nonlinear",
        seed=1,
        targets=3,
        doubles=3,
        genes=15,
        cells_per_condition=20_000,
        controls=20_000,
        **overrides,
    )
    truth, values = screen.truth, dense(screen)
    assert truth.condition_mean is not None
    for row in range(len(truth.conditions)):
        cells = values[truth.cells.condition == row]
        error = (cells.mean(0) - truth.condition_mean[row]) / (cells.std(0) / np.sqrt(len(cells)))
        assert np.abs(error).max() < 4.5  # 105 z-scores


@pytest.mark.parametrize("preset", ["default", "additive"])
def test_counts_have_the_stated_mean_and_dispersion(preset: str) -> None:
    screen = simulate(preset, seed=0, genes=60)
    truth, cells, counts = screen.truth, screen.truth.cells, dense(screen)
    assert truth.dispersion is not None and truth.condition_mean is None
    assert np.all(counts >= 0) and np.all(counts == np.round(counts))
    mean = cells.depth[:, None] * np.exp(truth.decode(cells.z_background, cells.z_responsive, cells.batch))
    variance = mean + truth.dispersion * mean**2
    squares = (counts - mean) ** 2 / variance
    for terms, expected in (((counts - mean) / np.sqrt(variance), 0.0), (squares, 1.0)):
        z = (terms.mean(0) - expected) / (terms.std(0) / np.sqrt(len(terms)))
        assert np.abs(z).max() < 4.5  # 60 z-scores
    assert ((counts - mean) ** 2 / mean).mean() > 1.5  # and Poisson they are not


def test_log_rate_is_the_expected_decoder_output_of_responding_cells() -> None:
    screen = simulate("default", seed=0, targets=4, doubles=3, genes=20, cells_per_condition=5_000)
    truth, cells = screen.truth, screen.truth.cells
    output = truth.decode(cells.z_background, cells.z_responsive, cells.batch)
    for row in range(len(truth.conditions)):
        chosen = output[(cells.condition == row) & ~cells.escaped]
        z = (chosen.mean(0) - truth.log_mean[row]) / (chosen.std(0) / np.sqrt(len(chosen)))
        assert np.abs(z).max() < 4.5


def test_escaped_cells_are_in_the_control_state(default: SimulatedScreen) -> None:
    truth, cells = default.truth, default.truth.cells
    perturbed = cells.condition > 0
    assert not truth.escaped[~perturbed].any()
    share = stats.binomtest(int(truth.escaped.sum()), int(perturbed.sum()), default.world.escape)
    assert share.pvalue > 1e-3
    precision = np.linalg.inv(signal_covariance(truth, 0))
    for chosen, like_control in ((truth.escaped, True), (perturbed & ~truth.escaped, False)):
        latents = cells.z_responsive[chosen]
        distance = float(np.einsum("nk,kl,nl->", latents, precision, latents))
        assert in_band(distance, latents.size) is like_control


# --- how pairs combine


def test_additive_world_adds_exactly_and_default_does_not(default: SimulatedScreen) -> None:
    truth = simulate("additive", seed=0, cells_per_condition=2).truth
    pair, summed = shifts(truth, truth.log_mean)
    np.testing.assert_allclose(pair, summed, atol=1e-12)
    assert np.abs(pair).max() > 0.5 and not truth.escaped.any()
    pair, summed = shifts(default.truth, default.truth.log_mean)
    assert np.linalg.norm(pair - summed) > 0.1 * np.linalg.norm(pair)


def test_scaled_world_is_sub_additive_by_its_scale() -> None:
    exact = simulate("scaled", seed=0, interaction=0.0, cells_per_condition=2).truth
    pair, summed = shifts(exact, exact.log_mean)
    np.testing.assert_allclose(pair, 0.8 * summed, atol=1e-12)

    screen = simulate("scaled", seed=0)
    truth, values = screen.truth, dense(screen)
    pairs = truth.design.sum(axis=1) == 2
    summed_w = truth.design[pairs] @ truth.effects
    products = np.array([np.prod(np.abs(truth.effects[row > 0]), axis=0) for row in truth.design[pairs]])
    width = truth.kappa * np.sqrt(truth.interaction_floor**2 + products)
    slope = (truth.m[pairs] * summed_w).sum() / (summed_w**2).sum()
    error = np.sqrt(((width * summed_w) ** 2).sum()) / (summed_w**2).sum()
    assert abs(slope - 0.8) < 4 * error and slope < 1 - 4 * error
    mean = np.array([values[truth.cells.condition == row].mean(0) for row in range(len(truth.conditions))])
    measured, _ = shifts(truth, mean)
    _, true_sum = shifts(truth, truth.log_mean)
    assert 0.7 < (measured * true_sum).sum() / (true_sum**2).sum() < 0.9


def test_nonlinear_world_makes_adding_wrong_for_strong_pairs() -> None:
    truth = simulate("nonlinear", seed=0, cells_per_condition=2).truth
    np.testing.assert_allclose(*shifts(truth, truth.latent_mean), atol=1e-12)  # latents add
    pair, summed = shifts(truth, truth.log_mean)
    size = np.linalg.norm(pair, axis=1)
    strong = size > np.median(size)
    scale = (pair * summed).sum() / (summed**2).sum()
    for factor in (1.0, scale):  # the best common factor does not mend it
        error = np.linalg.norm(pair - factor * summed, axis=1)[strong] / size[strong]
        assert np.median(error) > 0.2


# --- the demo data


def test_default_world_looks_like_a_screen(default: SimulatedScreen) -> None:
    truth, obs, counts = default.truth, default.adata.obs, dense(default)
    sizes = obs["condition"].value_counts()
    assert counts.shape == (len(obs), 300)
    assert list(truth.conditions) == sorted(sizes.index, key=lambda n: (n != "control", n.count("+"), n))
    assert len(sizes) == 1 + 24 + 40 and sizes["control"] == 1500
    assert 80 < sizes.drop("control").median() < 120
    assert sorted(obs["batch"].unique()) == ["batch1", "batch2", "batch3"]
    doubles = [name for name in sizes.index if "+" in name]
    assert {t for name in doubles for t in name.split("+")} <= set(sizes.index)
    assert all(name.split("+") == sorted(set(name.split("+"))) for name in doubles)
    np.testing.assert_array_equal(
        np.array(truth.conditions)[truth.cells.condition], obs["condition"].astype(str)
    )

    library = counts.sum(axis=1)
    assert library.min() > 0
    assert np.median(library[obs["condition"] == "control"]) == pytest.approx(3000, rel=0.1)
    log_expression = np.log1p(counts * 1e4 / library[:, None])
    control = log_expression[truth.cells.condition == 0].mean(axis=0)
    ratios = []
    for row in range(1, len(truth.conditions)):
        cells = log_expression[truth.cells.condition == row]
        ratios.append(
            np.linalg.norm(cells.mean(0) - control) / np.sqrt((cells.var(0, ddof=1) / len(cells)).sum())
        )
    assert 2 < np.median(ratios) < 4


def test_written_file_is_small_and_tells_how_to_make_it_again(
    tmp_path: Path, default: SimulatedScreen
) -> None:
    path = default.write(tmp_path / "sim.h5ad")
    assert path.stat().st_size < 10e6
    assert [p.name for p in tmp_path.iterdir()] == ["sim.h5ad"]
    back = anndata.read_h5ad(path)
    np.testing.assert_array_equal(back.X.toarray(), dense(default))
    assert back.obs.equals(default.adata.obs)
    assert set(back.uns) == {"note", "settings"} and set(back.obs) == {"condition", "batch"}
    again = simulate(**json.loads(back.uns["settings"]))
    assert again.world == default.world
    np.testing.assert_array_equal(dense(again), dense(default))


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path, default: SimulatedScreen) -> None:
    path = tmp_path / "sim.h5ad"
    path.write_text("old")
    broken = dataclasses.replace(default, adata=default.adata[:5].copy())
    broken.adata.uns["bad"] = object()
    with pytest.raises(Exception, match="object"):
        broken.write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["sim.h5ad"] and path.read_text() == "old"
    with pytest.raises(InputError, match="no folder"):
        default.write(tmp_path / "missing" / "sim.h5ad")
    with pytest.raises(InputError, match="is a folder"):
        default.write(tmp_path)


# --- settings


def test_unknown_fields_are_type_errors() -> None:
    with pytest.raises(TypeError, match="n_genes"):
        simulate("default", n_genes=10)
    with pytest.raises(TypeError, match="latents"):
        World(latents=3)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["default"].genes = 3  # type: ignore[misc]


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_round_trip_through_repr(preset: str) -> None:
    assert eval(repr(PRESETS[preset]), {"World": World}) == PRESETS[preset]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"targets": 0}, "targets must be a whole number of 1 or more, found 0"),
        ({"genes": 2.5}, "genes must be a whole number"),
        ({"escape": 1.5}, "escape must be between 0 and 1"),
        ({"noise": float("nan")}, "noise must be of 0 or more"),
        ({"noise": "wide"}, "noise must be"),
        ({"saturation": 0.0}, "saturation must be above 0"),
        ({"dispersion": 0}, "dispersion must be above 0"),
        ({"targets": 4, "doubles": 7}, "7 doubles were asked for but 4 targets make only 6"),
        ({"likelihood": "poisson"}, "found 'poisson'"),
        ({"preset": "none"}, "choose one of default"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_worlds_are_refused_in_one_sentence(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        simulate(**overrides)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_sorted_batch_names_are_in_the_order_of_the_codes() -> None:
    screen = simulate(seed=1, **TINY | {"batches": 12, "controls": 200})
    codes = screen.adata.obs["batch"].cat.codes
    np.testing.assert_array_equal(codes, screen.truth.cells.batch)
    assert codes.max() == 11


def test_numpy_numbers_are_numbers() -> None:
    screen = simulate(seed=np.int64(3), **TINY | {"genes": np.int64(5), "noise": np.float32(0.5)})  # type: ignore[arg-type]
    assert json.loads(screen.adata.uns["settings"])["genes"] == 5


@given(
    preset=st.sampled_from(sorted(PRESETS)),
    seed=st.integers(0, 2**40),
    targets=st.integers(3, 12),
    responsive=st.integers(1, 5),
    background=st.integers(0, 3),
    batches=st.integers(1, 3),
    triples=st.integers(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_any_world_is_one_that_a_screen_can_read(preset: str, seed: int, **sizes: int) -> None:
    screen = simulate(preset, seed, doubles=3, genes=20, controls=10, cells_per_condition=5, **sizes)
    truth, values = screen.truth, dense(screen)
    assert np.isfinite(values).all() and values.min() >= 0 and values.sum() > 0
    if screen.world.likelihood == "gaussian":
        assert values.min() > 0 and np.any(values != np.round(values))
    assert np.all(np.bincount(truth.cells.condition, minlength=len(truth.conditions)) >= 2)
    np.testing.assert_allclose(truth.batch_effects.mean(axis=0), 0, atol=1e-12)
    assert screen.adata.obs_names.is_unique and len(set(truth.conditions)) == len(truth.conditions)
    assert truth.gates.shape == (sizes["targets"], sizes["responsive"])


def test_doctest() -> None:
    outcome = doctest.testmod(pvae_pyro.simulate)
    assert outcome.attempted > 0 and outcome.failed == 0


def test_synergistic_combinations_add_their_sum_again() -> None:
    world = {"targets": 8, "doubles": 20, "cells_per_condition": 2, "controls": 5, "genes": 10, "interaction": 0.0}
    plain, some, every = (simulate("synergy", seed=3, synergy_share=share, **world).truth for share in (0.0, 0.5, 1.0))
    pairs = plain.design.sum(1) == 2
    np.testing.assert_allclose(plain.m, plain.design @ plain.effects, atol=1e-6)
    np.testing.assert_allclose(every.m[pairs], 2 * plain.m[pairs], atol=1e-6)
    np.testing.assert_array_equal(every.m[~pairs], plain.m[~pairs])
    doubled = np.isclose(some.m, every.m).all(1)[pairs]
    assert 3 < doubled.sum() < 17  # 20 draws of probability a half: outside with probability 0.3 %
    # nothing else of the world moves
    np.testing.assert_array_equal(plain.loadings_responsive, every.loadings_responsive)
