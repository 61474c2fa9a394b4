"""Samples for the alignment: whose controls they are, and what matching within batches does to each penalty."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pvae_pyro.guides import Amortized
from pvae_pyro.inference import FitSettings
from pvae_pyro.inference.cells import BalancedSampler, CellStore
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.screen import Screen
from pvae_pyro.story import MMD, Centroid, NoAlignment, Pairwise, PerturbedVAE, Story

ScreenOf = Callable[..., Screen]


def store_of(screen: Screen, batch: np.ndarray | None = None) -> CellStore:
    """All cells, with these batches instead of the screen's own."""
    if batch is not None:
        names = tuple(f"batch {b}" for b in range(int(batch.max()) + 1))
        screen = dataclasses.replace(screen, batch=batch, batches=names)
    return CellStore(screen, np.arange(screen.n_cells), "expression", torch.device("cpu"))


def imbalanced(screen: Screen, seed: int = 0) -> CellStore:
    """Four fifths of the controls lie in batch 0, two thirds of the perturbed cells in batch 1."""
    rng, control = np.random.default_rng(seed), screen.condition == 0
    batch = np.where(control, rng.choice(2, screen.n_cells, p=[0.8, 0.2]), rng.choice(2, screen.n_cells, p=[1 / 3, 2 / 3]))
    return store_of(screen, batch)


def penalties(store: CellStore, means: Tensor, part: Centroid | MMD | Pairwise, n: int) -> Tensor:
    """Penalties of `n` draws as the trainer asks for them, from planted background means (cells, latents)."""
    wants = {name: getattr(part, name, False) for name in ("paired", "matched")}
    sampler, generator, out = BalancedSampler(store, **wants), np.random.default_rng(1), []
    for _ in range(n):
        drawn = sampler.draw(generator)
        assert drawn is not None
        out.append(part.penalty(*(means[torch.as_tensor(rows)] for rows in drawn)))
    return torch.stack(out)


@pytest.mark.parametrize("kind", [Centroid, MMD, Pairwise])
def test_matched_controls_take_a_batch_imbalance_out_of_the_penalty(kind: type, screen: ScreenOf) -> None:
    """Background that moves with the batch only. Pairwise keeps what it always keeps: the spread of both sides."""
    store = imbalanced(screen("default", controls=400, cells_per_condition=60))
    generator = torch.Generator().manual_seed(2)
    gap = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    noise = torch.randn(len(store), 3, dtype=torch.float64, generator=generator)
    means = noise + store.batch.unsqueeze(1) * gap
    own, none = (penalties(store, noise, kind(matched=m), 200) for m in (True, False))  # no batch effect at all
    matched, unmatched = (penalties(store, means, kind(matched=m), 200) for m in (True, False))
    error = float(unmatched.std()) / 200**0.5
    # a matched control has its cell's batch, so that the batch effect cancels in every difference
    if kind is not MMD:
        torch.testing.assert_close(matched, own, rtol=1e-9, atol=1e-9)
    # these cells' own centroids differ by chance, with or without batches: what the imbalance adds is seen against that
    assert abs(float(matched.mean() - own.mean())) < 4 * error
    assert float(unmatched.mean() - none.mean()) > 15 * error
    if kind is not MMD:
        square = float(gap.square().sum())
        share = {d: float((store.batch[store.condition == d] == 1).double().mean()) for d in range(13)}
        s = np.array([share[d] for d in range(1, 13)])
        far = (s - share[0]) ** 2 if kind is Centroid else s + share[0] - 2 * s * share[0]
        assert float(unmatched.mean() - none.mean()) == pytest.approx(square * float(far.mean()), rel=0.15)


def test_matched_controls_are_of_the_same_batch_and_met_once_in_a_condition(screen: ScreenOf) -> None:
    store = imbalanced(screen("default", controls=200))
    sampler, generator = BalancedSampler(store, conditions=5, cells=6, matched=True), np.random.default_rng(3)
    code, batch, met = store.condition.numpy(), store.batch.numpy(), set()
    for _ in range(300):
        drawn = sampler.draw(generator)
        assert drawn is not None
        perturbed, control = drawn
        assert perturbed.shape == control.shape == (5, 6)
        assert (code[control] == 0).all() and (code[perturbed] == code[perturbed][:, :1]).all()
        assert np.array_equal(batch[control], batch[perturbed])
        assert all(len(set(row)) == 6 for row in control)
        met |= set(control.ravel())
    assert met == set(np.flatnonzero(code == 0))  # every control has its turn


def test_every_control_of_a_batch_is_met_equally_often(screen: ScreenOf) -> None:
    store = imbalanced(screen("default", controls=60))
    sampler, generator = BalancedSampler(store, conditions=1, cells=8, matched=True), np.random.default_rng(4)
    counts = np.zeros(len(store))
    for _ in range(4000):
        drawn = sampler.draw(generator)
        assert drawn is not None
        np.add.at(counts, drawn[1].ravel(), 1)
    for b in (0, 1):
        mine = counts[(store.condition.numpy() == 0) & (store.batch.numpy() == b)]
        chi2 = float(((mine - mine.mean()) ** 2 / mine.mean()).sum())
        assert chi2 < len(mine) + 4 * (2 * len(mine)) ** 0.5  # draws without replacement vary less than Poisson counts


def test_a_batch_with_too_few_controls_falls_back_to_all_and_says_so_once(
    screen: ScreenOf, caplog: pytest.LogCaptureFixture
) -> None:
    data = screen("default", controls=90)
    control = data.condition == 0
    batch = np.random.default_rng(5).integers(4, size=data.n_cells)
    batch[control] %= 3  # none in batch 3
    batch[np.flatnonzero(control & (batch == 2))[5:]] = 0  # and five in batch 2
    store = store_of(data, batch)
    with caplog.at_level(logging.WARNING, "pvae_pyro"):
        sampler = BalancedSampler(store, conditions=6, cells=8, matched=True)
        generator, seen = np.random.default_rng(6), {b: set() for b in range(4)}
        for _ in range(300):
            drawn = sampler.draw(generator)
            assert drawn is not None
            for cells, partners in zip(*drawn, strict=True):
                assert len(set(partners)) == 8
                for cell, partner in zip(cells, partners, strict=True):
                    seen[batch[cell]].add(int(partner))
    everyone = set(np.flatnonzero(control))
    assert seen[0] == set(np.flatnonzero(control & (batch == 0))) and seen[1] == set(np.flatnonzero(control & (batch == 1)))
    assert seen[2] == everyone == seen[3]
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 4 batches have fewer than 8 controls (such as 'batch 2'): their cells are matched with controls of all batches."
    ]


@pytest.mark.parametrize("paired", [False, True])
def test_with_one_batch_matching_changes_nothing(paired: bool, screen: ScreenOf, caplog: pytest.LogCaptureFixture) -> None:
    data = screen("default")
    store = store_of(data, np.zeros(data.n_cells, dtype=np.int64))
    drawn = []
    for matched in (False, True):
        caplog.clear()
        sampler, generator = BalancedSampler(store, paired=paired, matched=matched), np.random.default_rng(7)
        drawn.append([sampler.draw(generator) for _ in range(5)])
        assert len(caplog.records) == matched
    for plain, other in zip(*drawn, strict=True):
        assert plain is not None and other is not None
        assert all(np.array_equal(a, b) for a, b in zip(plain, other, strict=True))


def test_paired_controls_are_drawn_at_random_for_every_cell(screen: ScreenOf) -> None:
    store = store_of(screen("default"))
    sampler, generator = BalancedSampler(store, conditions=4, cells=5, paired=True), np.random.default_rng(8)
    counts = np.zeros(len(store))
    for _ in range(600):
        drawn = sampler.draw(generator)
        assert drawn is not None and drawn[0].shape == drawn[1].shape == (4, 5)
        np.add.at(counts, drawn[1].ravel(), 1)
    control = store.condition.numpy() == 0
    assert not counts[~control].any()
    chi2 = float(((counts[control] - 100) ** 2 / 100).sum())  # 12,000 draws of 120 controls
    assert abs(chi2 - 119) < 4 * (2 * 119) ** 0.5


@pytest.mark.parametrize("part", [Pairwise(), Pairwise(matched=True), Centroid(matched=True), MMD(), MMD(matched=True)], ids=str)
def test_the_trainer_gives_every_alignment_the_sample_that_it_wants(part: Pairwise, screen: ScreenOf) -> None:
    """The penalty of a step is that of the sampler's rows under the guide, and its gradient reaches the background encoder."""
    data = screen("default")
    trainers = []
    for alignment in (part, NoAlignment()):
        model = PerturbedVAE(background=3, hidden=4, alignment=alignment)
        torch.manual_seed(9)
        story = Story(model, torch.as_tensor(data.design), data.n_cells, len(data.batches), data.n_genes, 3)
        store = store_of(data)
        trainers.append(Trainer(story, Amortized().build(story), store, store, FitSettings(), 0))
    one, plain = trainers
    assert one.sampler.paired == getattr(part, "paired", False) and bool(one.sampler.pools) == part.matched
    assert not plain.sampler.paired and not plain.sampler.pools
    sampler = BalancedSampler(one.store, paired=one.sampler.paired, matched=part.matched)
    drawn = sampler.draw(np.random.default_rng(0))
    assert drawn is not None
    means = [one.guide.background(one.store.take(rows.ravel()))[0].reshape(*rows.shape, 3) for rows in drawn]
    found = one.alignment()
    torch.testing.assert_close(found, part.penalty(*means))
    found.backward()
    assert one.guide.gain_background.grad is not None and one.guide.gain_background.grad.abs().sum() > 0
