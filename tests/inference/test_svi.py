"""The stochastic objective: minibatches are unbiased for all cells, and so are balanced draws for the alignment penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Amortized
from pvae_pyro.inference import FitSettings
from pvae_pyro.inference.cells import BalancedSampler, CellStore, background_means
from pvae_pyro.inference.leakage import measure_leakage
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.screen import Screen
from pvae_pyro.story import Centroid, Gaussian, NegativeBinomial, NoAlignment, PerturbedVAE, Story

CPU = torch.device("cpu")


def trainer(screen: Screen, seed: int = 0, settings: FitSettings | None = None, **parts: object) -> Trainer:
    """A trainer of a random start on all cells but every tenth."""
    model = PerturbedVAE(background=3, hidden=4, **parts)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    rows = np.arange(screen.n_cells)
    held_out = rows % 10 == 9
    story = Story(model, torch.as_tensor(screen.design), int((~held_out).sum()), len(screen.batches), screen.n_genes, 3)
    guide = Amortized().build(story)
    with torch.no_grad():
        torch.nn.init.normal_(guide.correct_background.last.weight, std=0.1)  # type: ignore[union-attr]
    stores = [CellStore(screen, rows[which], model.likelihood.observes, CPU) for which in (~held_out, held_out)]
    return Trainer(story, guide, *stores, settings or FitSettings(), seed)


@pytest.mark.parametrize("likelihood", [Gaussian(), NegativeBinomial()], ids=["gaussian", "counts"])
def test_a_minibatch_is_unbiased_for_all_cells(likelihood: Gaussian, screen: Callable[..., Screen]) -> None:
    t = trainer(screen("default"), likelihood=likelihood)
    n, generator = len(t.store), np.random.default_rng(1)
    differences, parts = [], []
    with torch.no_grad():
        for seed in range(20):
            order = generator.permutation(n)
            batches = np.split(order, [n // 2, n // 2 + n // 5])  # three batches, all of different size
            losses = []
            for rows in (np.arange(n), *batches):
                torch.manual_seed(seed)  # the same draw of the globals, which come first: their noise cancels
                losses.append(float(t.loss(rows)))
            parts.append(losses[1:])
            differences.append(sum(len(b) / n * loss for b, loss in zip(batches, losses[1:], strict=True)) - losses[0])
    error = np.std(differences, ddof=1) / len(differences) ** 0.5
    assert abs(np.mean(differences)) < 4 * error
    assert error < 0.01 * np.mean(parts)  # a wrong scale of the plate by as little as two per cent would be seen
    assert np.std([p[2] - p[0] for p in parts]) > 10 * error  # and the batches do differ


def test_held_out_loss_is_on_the_scale_of_the_training_loss(screen: Callable[..., Screen]) -> None:
    """The same cells as training and as held-out cells have the same loss: a per-cell number for either store."""
    t = trainer(screen())
    rows = np.arange(len(t.store))
    with torch.no_grad():
        torch.manual_seed(3)
        one = float(t.loss(rows))
        torch.manual_seed(3)
        other = float(t.loss(rows, t.store))
    assert one == pytest.approx(other, rel=1e-6)


def test_balanced_draws_are_unbiased_for_the_alignment_of_all_cells(screen: Callable[..., Screen]) -> None:
    t = trainer(screen(cells_spread=0.8))
    store = t.store
    with torch.no_grad():
        means = background_means(t.guide, store, np.arange(len(store))).double()
        control = means[store.condition == 0]
        exact = torch.stack([
            Centroid().penalty(means[store.condition == d].unsqueeze(0), control)
            for d in range(1, len(store.screen.conditions))
            if int((store.condition == d).sum()) >= 2
        ]).mean()  # fmt: skip
        drawn = torch.stack([t.alignment() for _ in range(1500)]).double()
    assert abs(float(drawn.mean() - exact)) < 4 * float(drawn.std()) / 1500**0.5
    assert float(drawn.std()) / 1500**0.5 < 0.05 * float(exact)


def test_the_sampler_is_balanced_and_without_replacement(screen: Callable[..., Screen]) -> None:
    store = trainer(screen()).store
    sampler, generator = BalancedSampler(store, conditions=5, cells=4, controls=30), np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        drawn = sampler.draw(generator)
        assert drawn is not None
        perturbed, control = drawn
        assert perturbed.shape == (5, 4) and control.shape == (30,)
        code = store.condition.numpy()
        assert (code[perturbed] == code[perturbed][:, :1]).all() and len(set(code[perturbed][:, 0])) == 5
        assert all(len(set(row)) == 4 for row in perturbed) and len(set(control)) == 30
        assert (code[control] == 0).all() and not (code[perturbed] == 0).any()
        seen |= set(code[perturbed][:, 0])
    assert seen == set(range(1, 13))


def test_no_alignment_costs_nothing_and_moves_no_other_random_number(screen: Callable[..., Screen]) -> None:
    with_, without = (trainer(screen(), alignment=a) for a in (Centroid(weight=1.0), NoAlignment()))
    with torch.no_grad():
        assert float(without.alignment()) == 0.0 and float(with_.alignment()) != 0.0
    assert with_.generator.bit_generator.state == without.generator.bit_generator.state


def test_cells_of_a_store_are_those_of_the_screen(screen: Callable[..., Screen]) -> None:
    data = screen("default")
    rows = np.arange(5, data.n_cells, 3)
    for observes, matrix in (("expression", data.expression), ("counts", data.counts)):
        store = CellStore(data, rows, observes, CPU)
        index = np.array([7, 0, 3])
        cells = store.take(index)
        np.testing.assert_array_equal(cells.expression, data.expression[rows[index]].toarray())
        assert matrix is not None
        np.testing.assert_array_equal(cells.observed, matrix[rows[index]].toarray())
        np.testing.assert_array_equal(cells.condition, data.condition[rows[index]])
        np.testing.assert_array_equal(cells.batch, data.batch[rows[index]])
        np.testing.assert_allclose(cells.library, data.library[rows[index]])
    batches = list(store.epoch(50, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(store)))  # each cell once, the last batch kept
    assert [len(b) for b in batches[:-1]] == [50] * (len(batches) - 1)


def test_leakage_sees_what_is_planted(screen: Callable[..., Screen]) -> None:
    """Background that moves with the condition, effects that explain all of a shift or none of it."""
    data = screen(doubles=0, controls=300, cells_per_condition=60)
    t = trainer(data, likelihood=Gaussian(link="identity"))
    rows, guide, story = np.arange(len(t.store)), t.guide, t.story
    generator = torch.Generator().manual_seed(5)
    design = torch.as_tensor(data.design)
    w = 3 * torch.randn(len(data.targets), 3, generator=generator)
    x = torch.randn(len(t.store), data.n_genes, generator=generator)
    x[:, :3] += (design @ w)[t.store.condition]  # genes 0 to 2 show the shift, 3 to 5 nothing
    shown = np.zeros((data.n_cells, data.n_genes), dtype=np.float32)
    shown[t.store.rows] = x.numpy()
    store = CellStore(dataclasses.replace(data, expression=sp.csr_matrix(shown)), t.store.rows, "expression", CPU)

    def measured(background_gene: int, effects: torch.Tensor) -> dict[str, float]:
        with torch.no_grad():
            for p in guide.parameters():
                p.zero_()
            guide.centre.zero_()
            guide.family.logits["gates"].fill_(20.0)
            guide.family.loc["effects"].copy_(effects)
            guide.gain_background[background_gene, 0] = 1.0
            guide.gain_responsive[:3] = torch.eye(3)
            for p in story.decoder.parameters():
                p.zero_()
            story.decoder.responsive[:, :3] = torch.eye(3)
        return measure_leakage(guide, store, rows)

    clean = measured(5, w)
    assert clean["leakage_background"] < 0.05 and clean["leakage_responsive"] < 0.01
    assert clean["active_units"] == 3 and clean["gate_entropy"] < 1e-4
    leaky = measured(0, torch.zeros_like(w))
    shift = (design[1:] @ w)[:, 0].square().mean()
    assert leaky["leakage_background"] == pytest.approx(float(shift), rel=0.25)  # variance inside conditions is one
    assert leaky["leakage_responsive"] == pytest.approx(1.0, abs=0.01) and leaky["active_units"] == 0
    half = measured(5, 0.5 * w)
    assert half["leakage_responsive"] == pytest.approx(0.25, abs=0.02)  # half of the shift, squared


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"epochs": 2.5}, {"epochs": True}, {"batch_size": 0}, {"learning_rate": 0.0}, {"globals_rate": -1.0},
     {"learning_rate": float("nan")}, {"gradient_clip": float("inf")}, {"loadings_rate": -0.1}, {"validation": 1.0},
     {"validation": -0.1}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        FitSettings(**wrong)  # type: ignore[arg-type]
