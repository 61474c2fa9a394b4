"""Tests of known groups and of agreement: exact where groups and programs are made by hand, blind to order, sign and scale."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.programs.arms import biology, named
from experiments.programs.biology import (
    INTERFERON,
    NEXT_TO_IT,
    against_random_groups,
    cosine,
    groups,
    in_one_latent,
    rank_of_neighbour,
    shared_program,
)
from experiments.programs.stability import agreement, rotated_floor
from pvae_pyro.inference.programs import Programs


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def made(effects: np.ndarray, loadings: np.ndarray) -> Programs:
    targets = tuple(f"T{i}" for i in range(len(effects)))
    genes = np.array([f"g{i}" for i in range(loadings.shape[1])])
    return Programs(targets, genes, effects, np.ones_like(effects), loadings)


def test_cosine_and_share_of_groups_known_by_hand(rng: np.random.Generator) -> None:
    same, opposite, apart = [[1.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [-2.0, 0.0]], [[1.0, 0.0], [0.0, 5.0]]
    np.testing.assert_allclose(cosine(np.array([same, opposite, apart])), [1, -1, 0], atol=1e-12)
    np.testing.assert_allclose(in_one_latent(np.array([same, opposite, apart])), [1, 1, 0.5])
    three = rng.normal(size=(1, 3, 4))
    unit = three[0] / np.linalg.norm(three[0], axis=1, keepdims=True)
    by_hand = (unit[0] @ unit[1] + unit[0] @ unit[2] + unit[1] @ unit[2]) / 3
    assert cosine(three)[0] == pytest.approx(by_hand)
    assert cosine(np.zeros((1, 2, 3)))[0] == 0


def test_groups_are_all_of_them_or_distinct_members() -> None:
    assert len({tuple(g) for g in groups(7, 3)}) == 35
    many = groups(60, 4)
    assert len(many) == 20_000 and all(len(set(g)) == 4 for g in many[:500].tolist())
    assert np.bincount(many.ravel(), minlength=60).std() / (20_000 * 4 / 60) < 0.05


def test_p_of_a_planted_group_is_the_smallest_and_of_a_random_one_is_not(rng: np.random.Generator) -> None:
    effects = rng.normal(size=(12, 5))
    effects[[1, 4, 6]] = np.array([0.0, 3.0, 0.0, 0.0, 0.0]) * np.array([[1], [2], [5]])
    for statistic in ("cosine", "share_in_one_latent"):
        value, median, p = against_random_groups(effects, [1, 4, 6], statistic)
        assert value == pytest.approx(1) and median < 0.8 and p == pytest.approx(1 / 220)
    assert rank_of_neighbour(effects, [1, 4], 6) == 1


def test_p_values_of_groups_chosen_at_random_are_uniform(rng: np.random.Generator) -> None:
    effects = rng.normal(size=(11, 4))
    p = [against_random_groups(effects, list(group), "cosine")[2] for group in groups(11, 3)]
    np.testing.assert_allclose(sorted(p), np.arange(1, len(p) + 1) / len(p), atol=1e-9)


def test_shared_program_counts_members_on_the_common_latent() -> None:
    effects = np.array([[4.0, 0.1], [-3.0, 0.0], [1.0, 2.0], [0.0, 9.0]])
    inclusion = np.array([[0.9, 0], [0.8, 0], [0.3, 1], [0, 1]])
    found = shared_program(effects, inclusion, [0, 1, 2])
    assert found == {"latent": 0, "members_whose_top_it_is": 2, "members_of_one_sign": 2, "least_inclusion": 0.3}


def test_the_interferon_test_passes_where_it_should_and_only_there(rng: np.random.Generator) -> None:
    targets = tuple(sorted((*INTERFERON, NEXT_TO_IT, *(f"T{i}" for i in range(15)))))
    effects = rng.normal(size=(20, 8))
    none = {(w, m): v for w, m, v in biology(effects, np.ones((20, 8)), targets, "x")}
    assert none["interferon, x", "cosine, p"] > 0.01
    for target, size in zip((*INTERFERON, NEXT_TO_IT), (3, 4, 5, 6, 2), strict=True):
        effects[targets.index(target)] = 0.1 * rng.normal(size=8) + size * np.eye(8)[5]
    found = {(w, m): v for w, m, v in biology(effects, np.ones((20, 8)), targets, "x")}
    assert found["interferon, x", "cosine, p"] < 0.002 and found["interferon, x", "share_in_one_latent, p"] < 0.002
    assert found["interferon, x", "latent"] == 5 and found["interferon, x", "members_whose_top_it_is"] == 4
    assert found["interferon, x", f"rank of {NEXT_TO_IT}"] == 1


def test_agreement_is_one_up_to_order_sign_and_scale_and_lower_in_other_axes(rng: np.random.Generator) -> None:
    effects, loadings = rng.normal(size=(30, 5)), rng.normal(size=(5, 80))
    one, order, factor = made(effects, loadings), [3, 0, 4, 1, 2], np.array([1.0, -2.0, 0.5, -1.0, 3.0])
    other = made((effects * factor)[:, order], (loadings / factor[:, None])[order])
    for values in agreement(one, other):
        np.testing.assert_allclose(values, 1)
    floor = rotated_floor(one, draws=30)
    assert 0.5 < floor[0] < 0.9 and floor[1] < 0.95
    unrelated = made(rng.normal(size=(30, 5)), rng.normal(size=(5, 80)))
    assert agreement(one, unrelated)[0].mean() < 0.35


def test_a_latent_that_everything_moves_one_way_is_told(rng: np.random.Generator) -> None:
    effects = np.column_stack([np.abs(rng.normal(size=20)) + 0.1, rng.normal(size=20)])
    rows = {(w, m): v for w, m, v in named(made(effects, rng.normal(size=(2, 30))))}
    assert rows["latent 0", "one_sign"] == 1.0 and rows["latent 1", "one_sign"] < 0.9
    assert rows["latent 0", "share"] + rows["latent 1", "share"] == pytest.approx(1)
