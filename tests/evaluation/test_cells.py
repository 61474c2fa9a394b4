"""Distances between sets of cells: double sums, closed forms, and what a collapsed sampler gets."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.evaluation.cells import energy_distance, median_bandwidth, mmd, spread_ratio

pytestmark = pytest.mark.filterwarnings("error")


def mean_over_pairs(one: np.ndarray, other: np.ndarray, value, apart: bool) -> float:  # type: ignore[no-untyped-def]
    """Mean of value(x, y) over pairs, of different places where apart."""
    found = [value(x, y) for i, x in enumerate(one) for j, y in enumerate(other) if not (apart and i == j)]
    return float(np.mean(found))


def test_distances_are_their_double_sums() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)) + 1

    def far(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    expected = (
        2 * mean_over_pairs(x, y, far, False)
        - mean_over_pairs(x, x, far, True)
        - mean_over_pairs(y, y, far, True)
    )
    assert energy_distance(x, y) == pytest.approx(expected)
    upper = [far(a, b) for i, a in enumerate(x) for b in x[i + 1 :]]
    assert median_bandwidth(x) == pytest.approx(np.median(upper))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.exp(-(far(a, b) ** 2) / (2 * (f * 1.3) ** 2)) for f in (0.5, 2.0)]))

    expected = (
        mean_over_pairs(x, x, kernel, True)
        + mean_over_pairs(y, y, kernel, True)
        - 2 * mean_over_pairs(x, y, kernel, False)
    )
    assert mmd(x, y, 1.3, (0.5, 2.0)) == pytest.approx(expected)


def test_two_samples_of_one_law_are_at_no_distance_on_average() -> None:
    rng = np.random.default_rng(1)
    pairs = [rng.normal(size=(2, 25, 2)) for _ in range(400)]
    for distance in (energy_distance, lambda x, y: mmd(x, y, 1.5)):
        found = np.array([distance(x, y) for x, y in pairs])
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))


def test_a_collapsed_sampler_does_not_win() -> None:
    rng = np.random.default_rng(2)
    cells, perfect, narrow = (
        rng.normal(size=(300, 5)),
        rng.normal(size=(300, 5)),
        0.2 * rng.normal(size=(300, 5)),
    )
    unit = median_bandwidth(cells)
    assert energy_distance(narrow, cells) > 10 * abs(energy_distance(perfect, cells))
    assert mmd(narrow, cells, unit) > 10 * abs(mmd(perfect, cells, unit))
    # a bandwidth far above the distances sees means only, as the docstring says
    assert abs(mmd(narrow, cells, 1000 * unit)) < 1e-4
    middle, low, high = spread_ratio(narrow.var(axis=0), cells.var(axis=0))
    assert middle == pytest.approx(0.04, abs=0.01) and low <= middle <= high
    assert np.isnan(spread_ratio(np.ones(3), np.zeros(3))).all()
    assert spread_ratio([1.0, 5.0], [2.0, 0.0])[0] == 0.5


@pytest.mark.parametrize("other", [np.zeros((1, 3)), np.zeros((4, 2))])
def test_what_has_no_distance_is_refused(other: np.ndarray) -> None:
    for distance in (energy_distance, lambda x, y: mmd(x, y, 1.0)):
        with pytest.raises(ValueError, match="columns"):
            distance(np.zeros((4, 3)), other)
    with pytest.raises(ValueError, match="bandwidth"):
        mmd(np.zeros((4, 3)), np.zeros((4, 3)), 0.0)
