"""The start of compositions: what simulated shifts were made with comes back, with intervals that mean something."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pvae_pyro.inference.composing import ComposedStart, Shifts, start_composition
from pvae_pyro.story import Additive, Bilinear, Interaction, PerturbedVAE, Saturating, Story

TARGETS, LATENTS, PAIRS, SAMPLING = 24, 8, 60, 0.15


def story_of(design: Tensor, composition: Any, interaction: Interaction) -> Story:
    model = PerturbedVAE(composition=composition, interaction=interaction, responsive=LATENTS, background=2)
    with torch.random.fork_rng(devices=[]):
        return Story(model, design, 100, 1, 10, LATENTS)


def world(
    seed: int, composition: Any, values: dict[str, Tensor], interaction: Interaction, kappa: float, pairs: int = PAIRS
) -> tuple[Story, Shifts, Tensor]:
    """Shifts of random pairs under the story's own law; effects of singles measured with the same noise."""
    generator = torch.Generator().manual_seed(seed)
    chosen = np.random.default_rng(seed).permutation(list(itertools.combinations(range(TARGETS), 2)))[:pairs]
    design = torch.zeros(pairs, TARGETS)
    for row, pair in enumerate(chosen):
        design[row, list(pair)] = 1.0
    story = story_of(design, composition, interaction)
    w = torch.randn(TARGETS, LATENTS, generator=generator)
    composed = composition.compose(values | story.axes(), design, w, story.unit)
    width = interaction.latent_width(torch.full((LATENTS,), kappa), story.typical, design, w)
    stretch = interaction.stretch * torch.randn(pairs, 1, generator=generator)
    noise = [torch.randn(pairs, LATENTS, generator=generator) for _ in range(2)]
    shifts = composed * (1 + stretch) + width * noise[0] + SAMPLING * noise[1]
    # what is known of a single after a measurement of this precision: shrunken, with its posterior variance
    measured = w + SAMPLING * torch.randn(w.shape, generator=generator)
    keep = 1 / (1 + SAMPLING**2)
    variance = torch.full_like(w, keep * SAMPLING**2)
    return story, Shifts(keep * measured, variance, design, shifts, torch.full_like(shifts, SAMPLING**2)), w


def test_scale_and_width_come_back_within_their_intervals() -> None:
    """Twenty 0.8 x additive worlds: 90 % intervals of the scale; the common width within a tenth of its truth on average."""
    inside, widths, errors = 0, [], []
    for seed in range(20):
        composition = Additive(scale=1.0, scale_spread=0.3)
        plain = Interaction(width=0.6, stretch=0.1, surprise_spread=0.0)
        story, data, _ = world(seed, composition, {"scale": torch.tensor(0.8)}, plain, kappa=0.4)
        found = start_composition(story, data)
        value, sd = found.sites["composition_scale"]
        assert sd is not None and found.kappa is not None
        inside += abs(float(value.log()) - np.log(0.8)) < 1.645 * float(sd)
        widths.append(float(found.kappa[0].square().mean().sqrt()))
        errors.append(((found.kappa[0].log() - np.log(0.4)) / found.kappa[1]).numpy())
    # 20 intervals of 90 %: fewer than 14 inside has probability 0.2 %
    assert inside >= stats.binom.ppf(0.002, 20, 0.9)
    assert np.mean(widths) == pytest.approx(0.4, abs=0.04)
    # 160 widths: the standard error of a share of 0.9 is 0.024
    assert (np.abs(errors) < 1.645).mean() > 0.9 - 4 * 0.024


@pytest.mark.parametrize("unit", [0.3, 1.0, 2.5])
def test_the_size_of_stretches_is_learnt_from_pairs(unit: float) -> None:
    """The prior says 0.15 * 1; sixty stretches tell their sd within 9 %, six worlds its mean log within 4 %, the prior pulls."""
    found = []
    for seed in range(6):
        told, true = (Interaction(stretch=0.15 * x, surprise_spread=0.0) for x in (1.0, unit))
        _, data, _ = world(seed, Additive(scale=1.0, scale_spread=0.1), {"scale": torch.tensor(1.0)}, true, kappa=0.1)
        story = story_of(data.design, Additive(scale=1.0, scale_spread=0.1), told)
        found.append(start_composition(story, data).stretch_unit)
    # an information of 2 * 60 about the log of the sd against the prior's 1 / 0.5^2 = 4: at most a tenth of the way back
    pull = 0.1 * abs(np.log(unit))
    assert abs(np.log(found).mean() - np.log(unit)) < pull + 4 * 0.09 / np.sqrt(6) + 0.05


def test_capacity_comes_back() -> None:
    errors = []
    for seed in range(6):
        composition = Saturating(scale_spread=0.1, capacity=5.0, capacity_spread=0.5)
        values = {"scale": torch.tensor(0.9), "capacity": torch.tensor(2.5)}
        story, data, _ = world(seed, composition, values, Interaction(stretch=0.1, surprise_spread=0.0), kappa=0.3)
        value, sd = start_composition(story, data).sites["capacity"]
        errors.append((float(value.log()) - np.log(2.5)) / float(sd))  # type: ignore[arg-type]
    assert np.sqrt(np.mean(np.square(errors))) < 2.0 and abs(np.mean(errors)) < 3 / np.sqrt(6)


def bilinear_world(seed: int, pairs: int) -> tuple[Story, Shifts, Callable[[Tensor], Tensor], ComposedStart]:
    """Pairs that follow a rule of rank two, and what the start makes of them."""
    composition = Bilinear(rank=LATENTS, capacity=4.0, pairing=3.0, pairing_spread=0.5)
    n = (LATENTS + 1) * (LATENTS + 2) // 2
    generator = torch.Generator().manual_seed(100 + seed)
    weights = 4.0 * torch.randn(n, LATENTS, generator=generator)
    values = {"scale": torch.tensor(1.0), "capacity": torch.tensor(4.0), "pairing": weights}
    plain = Interaction(stretch=0.0, surprise_spread=0.0)
    story, data, w = world(seed, composition, values, plain, kappa=0.1, pairs=pairs)
    identity = {"directions": torch.eye(LATENTS), "basis": torch.eye(n)}

    def truth(design: Tensor) -> Tensor:
        return composition.compose(values | identity, design, w, story.unit)

    return story, data, truth, start_composition(story, data)


def test_a_bilinear_rule_is_learnt_and_carried_to_unseen_pairs() -> None:
    explained = []
    for seed in range(4):
        story, data, truth, found = bilinear_world(seed, 150)
        trained = {tuple(torch.nonzero(row).flatten().tolist()) for row in data.design}
        new = [p for p in itertools.combinations(range(TARGETS), 2) if p not in trained]
        design = torch.zeros(len(new), TARGETS)
        for row, pair in enumerate(new):
            design[row, list(pair)] = 1.0
        plain = {"scale": torch.tensor(1.0), "capacity": torch.tensor(4.0)}
        rule = Saturating().compose(plain, design, data.singles, story.unit)
        wanted, got = truth(design), found.compose(story, design, data.singles)
        explained.append(1 - float((wanted - got).square().sum() / (wanted - rule).square().sum()))
    assert np.mean(explained) > 0.5


def test_weights_have_the_posterior_of_a_ridge_regression() -> None:
    """Against a dense solve in another basis, at the hyper-parameters that were found."""
    story, data, _, found = bilinear_world(0, 30)
    part = story.model.composition
    values = found.values | story.axes()
    zero = values | {"pairing": torch.zeros_like(values["pairing"])}
    misfit = data.shifts - part.compose(zero, data.design, data.singles, story.unit)
    composed = part.compose(zero, data.design, data.singles, story.unit)
    factor2 = composed.square().sum(1) / (data.design @ data.singles).square().sum(1)
    assert found.kappa is not None
    features = part.features(values, data.design, data.singles, story.unit).double().numpy()
    made = (features @ found.sites["pairing"][0].double().numpy()).T
    strength = float(found.sites["pairing_scale"][0])
    gram = features @ features.T
    for k in range(LATENTS):
        noise = data.variance[:, k] + factor2 * (data.design.square() @ data.singles_variance)[:, k]
        # the width of all latents together, which the weights were given; a latent's own is close to it
        gap = []
        for width in np.linspace(0.02, 0.5, 97):
            law = strength**2 * gram + np.diag(noise.numpy() + width**2)
            gap.append(np.abs(strength**2 * gram @ np.linalg.solve(law, misfit[:, k].numpy()) - made[k]).max())
        assert min(gap) < 0.05 * np.abs(made[k]).max()


@dataclass(frozen=True)
class Powered:
    """A user's own composition, without registration: combinations are the sum to a learnt power of its length."""

    def sample(self, plates: Any, like: Tensor) -> dict[str, Tensor]:
        import pyro
        import pyro.distributions as dist

        return {"power": pyro.sample("power", dist.Normal(like.new_tensor(0.0), 0.5))}

    def compose(self, values: dict[str, Any], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        total = design @ effects
        length = total.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        several = ((design != 0).sum(-1, keepdim=True) >= 2).to(total.dtype)
        return total * length ** (several * values["power"].unsqueeze(-1).unsqueeze(-1))


def test_a_composition_of_ones_own_starts_where_the_shifts_put_it() -> None:
    errors = []
    for seed in range(5):
        plain = Interaction(stretch=0.0, surprise_spread=0.0)
        story, data, _ = world(seed, Powered(), {"power": torch.tensor(-0.4)}, plain, kappa=0.2)
        value, sd = start_composition(story, data).sites["power"]
        errors.append((float(value) + 0.4) / float(sd))  # type: ignore[arg-type]
    assert np.sqrt(np.mean(np.square(errors))) < 2.2


def test_two_combinations_teach_nothing() -> None:
    composition = Saturating()
    values = {"scale": torch.tensor(0.5), "capacity": torch.tensor(1.0)}
    story, data, _ = world(0, composition, values, Interaction(), kappa=0.1, pairs=2)
    found = start_composition(story, data)
    assert found.sites == {} and found.kappa is None and found.stretch is None
    assert float(found.values["scale"]) == pytest.approx(1.0) and float(found.values["capacity"]) == pytest.approx(7.0)
