"""The calibration check judges the fit, not itself: true quantities are those of the world that was drawn."""

from __future__ import annotations

import numpy as np
import torch
from pyro import poutine

import pvae_pyro as pv
from experiments.sbc.arms import drawn_axes
from experiments.sbc.quantities import fresh, unseen_pairs, values
from experiments.sbc.world import CELLS, PLAN, RESPONSIVE, SETTINGS, TARGETS, UNTRAINED, draw_world, fitted


def test_true_shifts_are_those_that_cells_were_drawn_with() -> None:
    world = draw_world(3)
    story, guide = fitted(world, pv.Amortized(), 3, settings=pv.FitSettings(epochs=0, validation=0.0))
    assert SETTINGS.epochs > 0 and torch.equal(story.effect_scale, torch.full((RESPONSIVE,), PLAN.effect))
    truth = {name: torch.as_tensor(np.asarray(value)) for name, value in world.truth.sites.items()}
    with torch.no_grad(), poutine.block():
        with drawn_axes(story):
            g = guide.assemble(truth)
        turned = guide.assemble(truth)
        np.testing.assert_allclose(g.shift.numpy(), world.truth.shift, atol=1e-4)
        # in the axes of the start the same weights mean other pairs, so this is no idle precaution
        assert (turned.shift - g.shift).abs().max() > 0.01
        eta = fresh(np.random.default_rng(0))
        one = values(story, guide, truth, eta, world.screen)
        with drawn_axes(story):
            other = values(story, guide, truth, eta, world.screen)
    assert one["norm of w"] == other["norm of w"]
    assert one["shift of an unseen pair, one gene"] != other["shift of an unseen pair, one gene"]


def test_log_likelihood_is_the_normal_density_of_the_cells() -> None:
    """At the truth, against a dense covariance of one condition; the truth is more likely than noise twice as large."""
    world = draw_world(4)
    story, guide = fitted(world, pv.Amortized(), 4, settings=pv.FitSettings(epochs=0, validation=0.0))
    truth = {name: torch.as_tensor(np.asarray(value)) for name, value in world.truth.sites.items()}
    with torch.no_grad(), poutine.block(), drawn_axes(story):
        true = values(story, guide, truth, fresh(np.random.default_rng(0)), world.screen)["log likelihood"]
        loud = truth | {"noise": 2 * truth["noise"]}
        assert true > values(story, guide, loud, fresh(np.random.default_rng(0)), world.screen)["log likelihood"] + 1000


def test_untrained_pairs_are_drawn_by_the_rule_and_their_pseudobulks_have_the_noise_of_cells() -> None:
    """Mean and variance over draws at fixed globals, against the formula of one pair; seven pairs, twenty genes."""
    world = draw_world(5)
    story, guide = fitted(world, pv.Amortized(), 5, settings=pv.FitSettings(epochs=0, validation=0.0))
    truth = {name: torch.as_tensor(np.asarray(value)) for name, value in world.truth.sites.items()}
    n = 1500
    with torch.no_grad(), poutine.block(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [unseen_pairs(story, guide, truth) for _ in range(n)]
        names = ("latent mean", f"pseudobulk of {CELLS} cells")
        mean, bulk = (torch.stack([one[name] for one in drawn]).double() for name in names)
        g = guide.assemble(truth)
        with poutine.condition(data=truth):
            shared = story.shared()
        design = torch.zeros(1, len(TARGETS))
        design[0, [TARGETS.index(target) for target in UNTRAINED[2].split("+")]] = 1.0
        own = torch.linalg.inv(torch.eye(RESPONSIVE) - g.graph).T @ story.decoder.responsive
        centre = story.decoder.intercept[0] + story.compose(shared, design)[0] @ own
        background = story.decoder.background + g.coupling @ own
        v = story.noise_variance(g.log_variance, design)[0]
        cell = background.square().sum(0) + v @ own.square() + g.noise.square()
    error = mean.std(0)[2] / n**0.5
    assert ((mean.mean(0)[2] - centre).abs() < 4.5 * error).all() and (mean.std(0)[2] > 0.01 * cell.sqrt()).all()
    noise = (bulk - mean)[:, 2]
    # the relative standard error of a variance is sqrt(2 / n) = 0.037
    assert (CELLS * noise.var(0) / cell - 1).abs().max() < 4.5 * (2 / n) ** 0.5
