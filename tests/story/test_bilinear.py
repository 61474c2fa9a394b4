"""Bilinear composition: its limits, its kernel by loops, and what order and dose do to it."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.story import Additive, Bilinear, PerturbedVAE, Saturating, Story

LATENTS, CAPACITY, UNIT = 5, 3.0, 0.7
DESIGN = torch.tensor(  # control, singles, pairs (one with doses), three targets
    [[0, 0, 0], [1, 0, 0], [0, 0.5, 0], [1, 1, 0], [0, 0.5, 2], [1, 1, 1]], dtype=torch.float64
)


def effects(seed: int = 0) -> Tensor:
    return torch.randn(3, LATENTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def values(part: Bilinear, seed: int = 0) -> dict[str, Tensor]:
    axes = {name: axis.double() for name, axis in part.buffers(LATENTS).items()}
    generator = torch.Generator().manual_seed(seed)
    if axes["directions"].shape[1]:
        axes["directions"] = torch.linalg.qr(torch.randn(LATENTS, part.rank, dtype=torch.float64, generator=generator))[0]
    pairing = torch.randn(len(axes["basis"]), LATENTS, dtype=torch.float64, generator=generator)
    one = torch.tensor(1.0, dtype=torch.float64)
    return axes | {"scale": one, "capacity": CAPACITY * one, "pairing": pairing}


def made(part: Bilinear, v: dict[str, Tensor], design: Tensor = DESIGN, w: Tensor | None = None) -> Tensor:
    return part.compose(v, design, effects() if w is None else w, torch.full((LATENTS,), UNIT, dtype=torch.float64))


def test_rank_zero_is_saturating_and_without_a_capacity_additive() -> None:
    unit, w, none = torch.full((LATENTS,), UNIT, dtype=torch.float64), effects(), Bilinear(rank=0)
    saturating = Saturating().compose(values(none), DESIGN, w, unit)
    assert torch.equal(made(none, values(none)), saturating)
    endless = Bilinear(rank=0, scale_spread=0.0, capacity=math.inf)
    model = PerturbedVAE(composition=endless, responsive=LATENTS, background=2)
    story = Story(model, DESIGN.float(), 10, 1, 4, LATENTS)
    other = Story(model.replace(composition=Additive()), DESIGN.float(), 10, 1, 4, LATENTS)
    found = []
    for one in (story, other):
        pyro.set_rng_seed(0)
        shared = one.shared()
        found.append(one.compose(shared, one.design))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_products_of_features_are_the_kernel_of_pairs() -> None:
    part = Bilinear(rank=3, bias=0.4)
    v, w = values(part), effects(1)
    unit = torch.full((LATENTS,), UNIT, dtype=torch.float64)
    u = UNIT * w
    bias, short = torch.tensor([0.4], dtype=torch.float64), [math.sqrt(CAPACITY**2 + float(x @ x)) for x in u]
    psi = [torch.cat([bias, u[p] @ v["directions"] / short[p]]) for p in range(3)]
    pairs = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.float64)
    features = part.features(v, pairs, w, unit)
    names = [(0, 1), (0, 2), (1, 2)]
    for i, (a, b) in enumerate(names):
        for j, (c, d) in enumerate(names):
            kernel = 0.5 * (psi[a] @ psi[c] * (psi[b] @ psi[d]) + psi[a] @ psi[d] * (psi[b] @ psi[c]))
            assert float(features[i] @ features[j]) == pytest.approx(float(kernel), rel=1e-10)


def test_a_turned_basis_turns_weights_and_changes_nothing() -> None:
    part = Bilinear(rank=2)
    v = values(part)
    turn = torch.linalg.qr(torch.randn(len(v["basis"]), len(v["basis"]), dtype=torch.float64))[0]
    turned = v | {"basis": turn, "pairing": turn.T @ v["pairing"]}
    torch.testing.assert_close(made(part, turned), made(part, v))


def test_singles_and_control_are_left_alone_and_three_targets_are_the_sum_of_their_pairs() -> None:
    part = Bilinear(rank=3)
    v, rule = values(part), Saturating()
    unit = torch.full((LATENTS,), UNIT, dtype=torch.float64)
    beyond = made(part, v) - rule.compose(v, DESIGN, effects(), unit)
    torch.testing.assert_close(beyond[:3], torch.zeros(3, LATENTS, dtype=torch.float64), atol=1e-12, rtol=0)
    pairs = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 1, 1]], dtype=torch.float64)
    apart = made(part, v, pairs) - rule.compose(v, pairs, effects(), unit)
    torch.testing.assert_close(beyond[5], apart[:3].sum(0))
    torch.testing.assert_close(beyond[4], 0.5 * 2 * apart[3])  # doses multiply


def test_products_of_large_effects_do_not_run_away() -> None:
    part = Bilinear(rank=4)
    v = values(part)
    unit, pair = torch.full((LATENTS,), UNIT, dtype=torch.float64), DESIGN[3:4]
    sizes = [float(part.features(v, pair, factor * effects(), unit).norm()) for factor in (1.0, 1e3, 1e6)]
    assert sizes[2] == pytest.approx(sizes[1], rel=1e-3) and sizes[2] <= (0.2**2 + 1)


def test_the_prior_of_an_interaction_is_that_of_a_gaussian_process() -> None:
    """Variance of m over draws of the weights: (g scale_k)^2 k(AB, AB)."""
    part = Bilinear(rank=3, pairing=1.5, pairing_spread=0.0)
    story = Story(PerturbedVAE(composition=part, responsive=LATENTS, background=2), DESIGN.float(), 10, 1, 4, LATENTS)
    like = torch.linspace(0.5, 1.5, LATENTS)
    w, pair = effects().float(), DESIGN[3:4].float()
    pyro.set_rng_seed(0)
    drawn = []
    for _ in range(3000):
        with poutine.block():
            v = part.sample(story.plates(), like)
        v |= story.axes() | {"capacity": torch.tensor(CAPACITY), "scale": torch.tensor(1.0)}
        drawn.append(part.features(v, pair, w, story.unit) @ v["pairing"])
    sd = torch.stack(drawn).std(0)[0]
    kernel = part.features(v, pair, w, story.unit).square().sum()
    # sd of an sd from 3000 draws is 1.3 %
    torch.testing.assert_close(sd, 1.5 * like * kernel.sqrt(), rtol=0.06, atol=0)


@pytest.mark.parametrize("wrong", [{"rank": -1}, {"rank": 1.5}, {"pairing": 0.0}, {"bias": -1.0}, {"capacity": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Bilinear(**wrong)  # type: ignore[arg-type]
