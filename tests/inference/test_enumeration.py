"""Gate estimators inside the real objective: two targets x two latents, sixteen settings of the gates, summed by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pvae_pyro.guides.family as family_module
from pvae_pyro.guides import Amortized
from pvae_pyro.guides.gates import GateBernoulli, _ReinMax, _straight_through
from pvae_pyro.inference import FitSettings, fit
from pvae_pyro.inference.cells import CellStore
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.screen import Screen
from pvae_pyro.story import Additive, Gaussian, NoGraph, PerturbedVAE, SpikeSlab, Story

SETTINGS = torch.tensor(list(product((0.0, 1.0), repeat=4))).reshape(16, 2, 2)
LINEAR = {"graph": NoGraph(), "composition": Additive(), "likelihood": Gaussian(link="identity")}


@pytest.fixture
def trainer(screen: Callable[..., Screen]) -> Callable[..., Trainer]:
    """A trainer with effects and gates that matter, the same whatever the estimator."""
    data = screen(targets=2, doubles=0, controls=40, cells_per_condition=20, genes=15)

    def make(estimator: str, **parts: Any) -> Trainer:
        torch.manual_seed(0)
        model = PerturbedVAE(SpikeSlab(estimator=estimator), background=2, hidden=0, **parts)  # type: ignore[arg-type]
        story = Story(model, torch.as_tensor(data.design), data.n_cells, 1, data.n_genes, 2)
        guide = Amortized().build(story)
        with torch.no_grad():
            torch.nn.init.normal_(guide.family.loc["effects"], std=1.5)
            guide.family.logits["gates"].copy_(torch.tensor([[-1.2, 0.3], [2.0, -0.1]]))
            torch.nn.init.normal_(story.decoder.responsive, std=0.5)
        store = CellStore(data, np.arange(data.n_cells), "expression", torch.device("cpu"))
        return Trainer(story, guide, store, store, FitSettings(), 0)

    return make


def seeded_loss(t: Trainer, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return t.loss(np.arange(len(t.store)))


def gradients(t: Trainer, loss: Tensor) -> dict[str, Tensor]:
    watched = {"gates": t.guide.family.logits["gates"], "effects": t.guide.family.loc["effects"],
               "responsive": t.story.decoder.responsive}  # fmt: skip
    return dict(zip(watched, torch.autograd.grad(loss, list(watched.values())), strict=True))


def by_hand(t: Trainer, seed: int) -> float:
    """sum_s q(s) loss(s) - H(q): each term with gates fixed by extreme logits, whose KL is then -log p(s)."""
    logits = t.guide.family.logits["gates"]
    q = torch.distributions.Bernoulli(logits=logits.detach().double())
    kept, total = logits.detach().clone(), -float(q.entropy().sum()) / t.story.n_cells
    for s in SETTINGS:
        with torch.no_grad():
            logits.copy_(80 * s - 40)
            total += float(q.log_prob(s.double()).sum().exp()) * float(seeded_loss(t, seed).detach())
    with torch.no_grad():
        logits.copy_(kept)
    return total


@pytest.mark.parametrize("parts", [LINEAR, {}], ids=["linear", "default parts"])
def test_the_enumerated_objective_is_the_sum_by_hand(parts: dict[str, Any], trainer: Callable[..., Trainer]) -> None:
    exact, sampled = trainer("enumerate", **parts), trainer("reinmax", **parts)
    for seed in (0, 1):
        found, drawn = float(seeded_loss(exact, seed).detach()), float(seeded_loss(sampled, seed).detach())
        assert found == pytest.approx(by_hand(sampled, seed), rel=1e-5)
        assert abs(drawn - found) > 1e-4 * abs(found)  # one setting is not the sum of all


def test_it_uses_up_the_random_numbers_of_one_evaluation(trainer: Callable[..., Trainer]) -> None:
    after = []
    for estimator in ("enumerate", "reinmax"):
        seeded_loss(trainer(estimator))
        after.append(float(torch.rand(())))
    assert after[0] == after[1]


def expected_gradient(t: Trainer, draw: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Mean gradient of an estimator over the gates it may draw, all other noise the same: every setting by its probability."""
    p, out = torch.sigmoid(t.guide.family.logits["gates"].detach()), dict[str, Tensor]()
    for s in SETTINGS:
        uniform = torch.where(s == 1, p * 0.5, (1 + p) * 0.5)

        def forced(logits: Tensor, _: Tensor, uniform: Tensor = uniform) -> Tensor:
            return draw(logits, uniform)

        monkeypatch.setattr(family_module, "gate_law", lambda name, logits, pinned=None: GateBernoulli(logits, forced))  # noqa: B023
        probability = torch.where(s == 1, p, 1 - p).prod()
        for name, gradient in gradients(t, seeded_loss(t)).items():
            out[name] = out.get(name, torch.zeros_like(gradient)) + probability * gradient
    monkeypatch.undo()
    return out


def test_each_estimator_against_the_exact_gradient(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear-Gaussian objective is quadratic in each gate: ReinMax is exact in expectation, straight-through is not."""
    t = trainer("enumerate", **LINEAR)
    exact = gradients(t, seeded_loss(t))
    sampled = trainer("reinmax", **LINEAR)
    reinmax = expected_gradient(sampled, _ReinMax.apply, monkeypatch)
    straight = expected_gradient(sampled, _straight_through, monkeypatch)
    for name, gradient in exact.items():
        torch.testing.assert_close(reinmax[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    # what does not stand before the gates has its exact gradient in any case; the gates' own is off
    torch.testing.assert_close(straight["responsive"], exact["responsive"], rtol=1e-3, atol=1e-5)
    bias = (straight["gates"] - exact["gates"]).norm() / exact["gates"].norm()
    assert 0.01 < float(bias) < 0.5  # 3 % here, where the loss is nearly linear in a gate


def test_the_estimator_that_the_prior_names_is_the_one_used(trainer: Callable[..., Trainer]) -> None:
    one, other = trainer("reinmax"), trainer("straight-through")
    losses = [seeded_loss(t) for t in (one, other)]
    assert torch.equal(*losses)  # the same gates are drawn
    found, expected = gradients(one, losses[0]), gradients(other, losses[1])
    torch.testing.assert_close(found["responsive"], expected["responsive"])
    assert not torch.allclose(found["gates"], expected["gates"], rtol=0.05)


@pytest.mark.parametrize("estimator", ["reinmax", "straight-through", "enumerate"])
def test_every_estimator_trains_hard_gates_and_exports_their_probability(estimator: str, screen: Callable[..., Screen]) -> None:
    data = screen(targets=3, doubles=1, controls=60, cells_per_condition=30, genes=20)
    model = PerturbedVAE(SpikeSlab(estimator=estimator), responsive=1, background=2, hidden=0)  # type: ignore[arg-type]
    run = partial(fit, model, data, progress=False)
    found, start = run(settings=FitSettings(epochs=2)), run(settings=FitSettings(epochs=0))
    logits = found.state["guide.family.logits.gates"]
    assert not torch.allclose(logits, start.state["guide.family.logits.gates"], atol=1e-4)
    table = found.effects_table(draws=10)
    np.testing.assert_allclose(table["inclusion"], torch.sigmoid(logits).ravel(), rtol=1e-6)
    _, guide = found.modules()
    with torch.no_grad():
        w = torch.stack([guide.shared(guide.family.sample())["effects"] for _ in range(400)])
    shut = (w == 0).float().mean(0)
    error = (shut * (1 - shut) / 400).sqrt() + 1 / 400
    assert ((shut - (1 - torch.sigmoid(logits))).abs() < 4 * error).all()
    assert found.predict(["T01+T03"], draws=5).draws().shape == (5, 1, 20)
