"""Alignment penalties against sums over cells: what each is unbiased for, what it rewards, and what cannot matter to it."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.story import MMD, Centroid, NoAlignment, Pairwise

# every penalty with every sample of controls that the sampler may give it: one for all conditions, or one a perturbed cell
CASES = [(Centroid(), False), (Centroid(), True), (MMD(), False), (MMD(), True), (Pairwise(), True)]
IDS = ["centroid", "centroid paired", "mmd", "mmd paired", "pairwise"]
Part = Centroid | MMD | Pairwise


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


def test_with_controls_of_their_own_it_is_the_sum_over_different_pairs() -> None:
    perturbed, control = cells(2, 2, 4, 3), cells(3, 2, 4, 3)
    expected = 0.0
    for p, c in zip(perturbed, control, strict=True):
        expected += sum(float((p[i] - c[i]) @ (p[j] - c[j])) for i in range(4) for j in range(4) if i != j) / 12 / 2
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


@pytest.mark.parametrize("part", [Centroid, Pairwise, MMD])
def test_impossible_weights_are_refused(part: type[Part]) -> None:
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="weight"):
            part(weight=weight)


@pytest.mark.parametrize("wrong", [(), (0.0, 1.0), (-1.0,), (math.inf,), (math.nan,)])
def test_impossible_bandwidths_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="bandwidths"):
        MMD(bandwidths=wrong)


def test_pairwise_is_the_mean_over_pairs() -> None:
    perturbed, control = cells(11, 3, 4, 2), cells(12, 3, 4, 2)
    pairs_of_cells = [(d, i) for d in range(3) for i in range(4)]
    expected = sum(math.dist(perturbed[d, i], control[d, i]) ** 2 for d, i in pairs_of_cells) / 12
    assert float(Pairwise().penalty(perturbed, control)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gap", [0.0, 1.5])
def test_pairwise_counts_the_spread_of_both_sides_beside_the_gap(gap: float) -> None:
    """Its expectation is |gap|^2 + tr Cov + tr Cov: with equal laws nothing but spread is left to be rewarded."""
    generator = torch.Generator().manual_seed(13)
    mix = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)  # tr Cov = 1 + 0.25 + 4
    found = []
    for _ in range(4000):
        perturbed = torch.randn(2, 4, 2, dtype=torch.float64, generator=generator) @ mix
        control = 0.7 * torch.randn(2, 4, 2, dtype=torch.float64, generator=generator) + gap
        found.append(Pairwise().penalty(perturbed, control))
    values = torch.stack(found)
    expected = 2 * gap**2 + 5.25 + 2 * 0.49
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / len(values) ** 0.5
    # a background that no longer varies is what it asks for, where Centroid asks for nothing
    same_law = [torch.randn(5, 200, 3, dtype=torch.float64, generator=generator) for _ in range(2)]
    whole, squeezed = (float(Pairwise().penalty(f * same_law[0], f * same_law[1])) for f in (1.0, 0.1))
    assert squeezed == pytest.approx(0.01 * whole)
    assert abs(float(Centroid().penalty(*same_law))) < 0.05 * whole


def mmd_by_loops(perturbed: Tensor, control: Tensor, bandwidths: tuple[float, ...], unit: float | None = None) -> float:
    """The definition, cell by cell; `unit` is the median distance, by default that of the pooled cells."""
    pooled = [*perturbed.reshape(-1, perturbed.shape[-1]), *control.reshape(-1, control.shape[-1])]
    if unit is None:
        distances = sorted(math.dist(a, b) for a, b in combinations(pooled, 2))
        unit = distances[(len(distances) - 1) // 2]

    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-(math.dist(a, b) ** 2) / (2 * (h * unit) ** 2)) for h in bandwidths)

    def different(one: Tensor, other: Tensor) -> float:
        n = len(one)
        return sum(kernel(one[i], other[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    total = 0.0
    for d, p in enumerate(perturbed):
        c = control if control.dim() == 2 else control[d]
        cross = np.mean([kernel(a, b) for a in p for b in c]) if control.dim() == 2 else different(p, c)
        total += different(p, p) + different(c, c) - 2 * cross
    return total / len(perturbed)


@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 3)], ids=["one sample of controls", "controls of their own"])
@pytest.mark.parametrize("bandwidths", [(0.25, 0.5, 1.0, 2.0, 4.0), (0.3,)])
def test_mmd_is_its_definition_by_loops(shape: tuple[int, ...], bandwidths: tuple[float, ...]) -> None:
    perturbed, control = cells(14, 2, 4, 3, mean=0.8), cells(15, *shape)
    found = float(MMD(bandwidths=bandwidths).penalty(perturbed, control))
    assert found == pytest.approx(mmd_by_loops(perturbed, control, bandwidths), rel=1e-10)


@pytest.mark.parametrize("shape", [(5, 2), (2, 3, 2)], ids=["one sample of controls", "controls of their own"])
def test_the_bandwidth_is_not_differentiated_through(shape: tuple[int, ...]) -> None:
    samples = [cells(16, 2, 3, 2, mean=0.8).requires_grad_(), cells(17, *shape).requires_grad_()]
    MMD().penalty(*samples).backward()
    unit = float(torch.pdist(torch.cat([s.detach().reshape(-1, 2) for s in samples])).median())
    step, moved_the_median = 1e-5, False
    for number, sample in enumerate(samples):
        assert sample.grad is not None
        for place in np.ndindex(*sample.shape):
            fixed, free = [], []
            for sign in (1, -1):
                moved = [s.detach().clone() for s in samples]
                moved[number][place] += sign * step
                fixed.append(mmd_by_loops(moved[0], moved[1], MMD().bandwidths, unit))
                free.append(mmd_by_loops(moved[0], moved[1], MMD().bandwidths))
            slope, other = ((one - two) / (2 * step) for one, two in (fixed, free))
            assert float(sample.grad[place]) == pytest.approx(slope, abs=1e-7)
            moved_the_median |= abs(slope - other) > 1e-3
    assert moved_the_median  # so that a gradient through it would have been seen


@pytest.mark.parametrize(("part", "paired"), CASES[:4], ids=IDS[:4])
@pytest.mark.parametrize("case", ["equal", "shifted", "wider"])
def test_penalties_are_zero_on_average_under_equal_laws_and_positive_otherwise(part: Part, paired: bool, case: str) -> None:
    """Equal but skewed laws; for matched controls a batch effect that both sides of a pair share."""
    generator = torch.Generator().manual_seed(18)

    def draw(*shape: int) -> Tensor:
        return torch.distributions.Exponential(torch.ones((), dtype=torch.float64)).icdf(
            torch.rand(*shape, dtype=torch.float64, generator=generator)
        )

    found = []
    for _ in range(3000):
        perturbed, control = draw(2, 4, 2), draw(2, 4, 2) if paired else draw(7, 2)
        if case == "shifted":
            perturbed = perturbed + 1.0
        if case == "wider":
            perturbed = 1 + 4 * (perturbed - 1)
        if paired:
            batch = 3.0 * torch.randint(3, (2, 4, 1), generator=generator)
            perturbed, control = perturbed + batch, control + batch
        found.append(part.penalty(perturbed, control))
    values = torch.stack(found)
    z = float(values.mean() / (values.std() / len(values) ** 0.5))
    assert (values < 0).any()
    if case == "equal" or (case == "wider" and isinstance(part, Centroid)):  # centroids have nothing to say on spread
        assert abs(z) < 4
    else:
        assert z > 8


def test_unpaired_controls_would_hold_a_batch_effect_against_pairs() -> None:
    """Why a matched sample needs a statistic of its own: cells of a pair depend on each other through their batch."""
    generator = torch.Generator().manual_seed(19)
    values: dict[str, list[Tensor]] = {"pairs": [], "crossed": []}
    for _ in range(2000):
        batch = 3.0 * torch.randint(2, (1, 4, 1), generator=generator)
        p, c = (torch.randn(1, 4, 2, dtype=torch.float64, generator=generator) + batch for _ in range(2))
        values["pairs"].append(Centroid().penalty(p, c))
        values["crossed"].append(Centroid().penalty(p, c[0]))
    found = {name: torch.stack(v) for name, v in values.items()}
    z = {name: float(v.mean() / (v.std() / len(v) ** 0.5)) for name, v in found.items()}
    assert abs(z["pairs"]) < 4 and z["crossed"] < -8


@pytest.mark.parametrize(("part", "paired"), CASES, ids=IDS)
def test_rotation_offset_and_the_order_of_cells_do_not_matter(part: Part, paired: bool) -> None:
    perturbed, control = cells(20, 3, 5, 4, mean=0.5), cells(21, *((3, 5, 4) if paired else (6, 4)))
    expected = float(part.penalty(perturbed, control))
    turn, _ = torch.linalg.qr(cells(22, 4, 4))
    moved = float(part.penalty(perturbed @ turn + 7, control @ turn + 7))
    assert moved == pytest.approx(expected, rel=1e-9)
    order, conditions = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    shuffled = control[conditions][:, order] if paired else control[torch.tensor([5, 2, 0, 1, 4, 3])]
    assert float(part.penalty(perturbed[conditions][:, order], shuffled)) == pytest.approx(expected, rel=1e-9)
    assert abs(float(part.penalty(perturbed + 1, control)) - expected) > 1e-3 * abs(expected)  # an offset of one side does


def test_mmd_has_no_unit_and_the_others_have_the_squared_one_of_the_latents() -> None:
    perturbed, control = cells(23, 3, 5, 4, mean=0.5), cells(24, 3, 5, 4)
    for part, power in ((MMD(), 0), (Centroid(), 2), (Pairwise(), 2)):
        factor = float(part.penalty(3 * perturbed, 3 * control) / part.penalty(perturbed, control))
        assert factor == pytest.approx(3.0**power, rel=1e-9)


def test_a_weight_of_seventy_makes_mmd_cost_what_the_default_centroid_costs() -> None:
    """A small gap between means of a total variance of 10 in 20 dimensions, as the docstring says: within a fifth."""
    generator, costs = torch.Generator().manual_seed(25), []
    for _ in range(40):
        perturbed, control = (math.sqrt(0.5) * torch.randn(*shape, generator=generator) for shape in ((10, 50, 20), (300, 20)))
        costs.append([part.weight * float(part.penalty(perturbed + 0.1, control)) for part in (MMD(), Centroid())])
    mmd, centroid = np.mean(costs, axis=0)
    assert centroid == pytest.approx(5 * 20 * 0.01, rel=0.1) and mmd == pytest.approx(centroid, rel=0.2)


def test_identical_cells_make_no_mmd_and_no_error() -> None:
    same = torch.ones(2, 3, 4)
    assert float(MMD().penalty(same, same[0])) == 0
