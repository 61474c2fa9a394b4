"""The alignment penalty is unbiased for the squared distance of centroids, and says nothing about spread."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.story import Centroid, NoAlignment


def cells(seed: int, *shape: int, mean: float = 0.0) -> Tensor:
    """Background posterior means, double precision."""
    return mean + torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs(n: int) -> list[list[int]]:
    return [list(pair) for pair in combinations(range(n), 2)]


def test_the_mean_over_all_subsets_is_the_statistic_of_the_full_sample() -> None:
    perturbed, control = cells(0, 3, 5, 4, mean=0.7), cells(1, 6, 4)
    penalty = Centroid().penalty
    full = penalty(perturbed, control)
    # the subsets of conditions are the single ones: the penalty is a mean over conditions
    values = [
        penalty(perturbed[[d]][:, chosen], control[base])
        for d, chosen, base in product(range(3), pairs(5), pairs(6))
    ]
    torch.testing.assert_close(torch.stack(values).mean(), full, rtol=1e-12, atol=1e-12)
    assert torch.stack(values).std() > 0.1  # subsets do differ


def test_it_is_the_sum_over_different_cells() -> None:
    perturbed, control = cells(2, 2, 4, 3), cells(3, 5, 3)
    expected = 0.0
    for condition in perturbed:
        within = sum(float(condition[i] @ condition[j]) for i in range(4) for j in range(4) if i != j) / 12
        base = sum(float(control[i] @ control[j]) for i in range(5) for j in range(5) if i != j) / 20
        cross = sum(float(a @ b) for a in condition for b in control) / 20
        expected += (within + base - 2 * cross) / 2
    assert float(Centroid().penalty(perturbed, control)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_its_expectation_is_the_squared_distance_of_the_centroids(gap: float) -> None:
    generator = torch.Generator().manual_seed(4)
    shift = torch.tensor([gap, -gap, 0.0], dtype=torch.float64)
    values = []
    for _ in range(4000):
        # common offset and unequal spreads: neither may matter
        perturbed = 3 + shift + 2 * torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
        control = 3 + torch.randn(6, 3, dtype=torch.float64, generator=generator)
        values.append(Centroid().penalty(perturbed, control))
    found = torch.stack(values)
    z = (found.mean() - 2 * gap**2) / (found.std() / len(found) ** 0.5)
    assert abs(float(z)) < 4
    assert (found < 0).any()  # unbiased means that it may be negative


def test_shrinking_the_spread_alone_is_never_rewarded() -> None:
    perturbed, control = cells(5, 3, 8, 4, mean=1.0), cells(6, 10, 4)

    def squeezed(x: Tensor, factor: float) -> Tensor:
        centre = x.mean(-2, keepdim=True)
        return centre + factor * (x - centre)

    values = [float(Centroid().penalty(squeezed(perturbed, f), squeezed(control, f))) for f in (1.0, 0.5, 0.1, 0.0)]
    assert values == sorted(values)
    # what remains without any spread is the distance of the sample centroids
    distance = (perturbed.mean(1) - control.mean(0)).square().sum(-1).mean()
    assert values[-1] == pytest.approx(float(distance), abs=1e-12)


def test_moving_the_centroids_together_is_rewarded() -> None:
    perturbed, control = cells(7, 3, 8, 4, mean=1.0), cells(8, 20, 4)
    values = [float(Centroid().penalty(perturbed - step, control)) for step in (0.0, 0.5, 1.0)]
    assert values[0] > values[1] > values[2]
    moved = perturbed.clone().requires_grad_()
    Centroid().penalty(moved, control).backward()
    direction = (perturbed.mean(1) - control.mean(0)).unsqueeze(1)
    assert moved.grad is not None and ((moved.grad * direction).sum((1, 2)) > 0).all()


def test_no_alignment_is_zero_and_has_no_weight() -> None:
    none = NoAlignment()
    assert none.weight == 0 and float(none.penalty(cells(9, 2, 3, 4, mean=5.0), cells(10, 6, 4))) == 0


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="weight"):
        Centroid(weight=-1)
