"""Unmixing: its closed forms agree with the story, and it recovers latents behind a mixing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pvae_pyro as pv
from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.identifiability import r2_linear
from pvae_pyro.inference.unmixing import Projection, UnmixSettings, _Run, unmix
from pvae_pyro.simulate.identifiability import Environments, Identifiable, identifiable
from pvae_pyro.story.alignment import PenaltyOnly, Unaligned
from pvae_pyro.story.graphs import EnvironmentGraph
from pvae_pyro.story.mixing import LeakyMixing

WORLD = Environments(responsive=2, background=3, perturbations=5, genes=40, train=1200, test=400, layers=1)
MODEL = pv.PerturbedVAE(
    effects=pv.NormalEffects(), graph=EnvironmentGraph(), composition=pv.Additive(), responsive=2, background=3,
    variance_spread=2.0, variance_limit=8.0,
)  # fmt: skip
SHORT = UnmixSettings(trials=((3, 300), (1, 500)), steps=20)


@pytest.fixture(scope="module")
def world() -> Identifiable:
    return identifiable(WORLD, seed=0)


@pytest.fixture(scope="module")
def screen(world: Identifiable) -> pv.Screen:
    return pv.Screen.from_anndata(world.adata, "condition", scale="normalised")


def _run(model: pv.PerturbedVAE, screen: pv.Screen) -> _Run:
    projection = Projection.of(screen.expression.toarray().astype(float), 5)
    return _Run(model, screen, projection(screen), projection, LeakyMixing(), UnmixSettings(), 0, None)


def test_the_projection_keeps_all_but_the_noise(screen: pv.Screen) -> None:
    projection = Projection.of(screen.expression.toarray().astype(float), 5)
    y = projection(screen)
    assert torch.allclose(y.std(0), torch.ones(5), atol=1e-2)
    assert projection.noise == pytest.approx(WORLD.noise, rel=0.05)


@pytest.mark.parametrize("alignment", [pv.Centroid(), Unaligned()], ids=["common law", "free law"])
def test_profiled_elbo_is_that_of_the_story_at_the_settled_globals(screen: pv.Screen, alignment: object) -> None:
    run = _run(MODEL.replace(alignment=alignment), screen)
    run.explore(60)
    profiled = run.elbo()
    run.settle()
    g, prior = run.values()
    run.sd = torch.zeros_like(run.sd)
    settled = float(run.per_cell(g, torch.arange(len(run.y))).mean().detach())
    assert torch.isfinite(prior)
    assert settled == pytest.approx(profiled, abs=0.02)


def test_reassigning_puts_a_swapped_latent_back(screen: pv.Screen) -> None:
    run = _run(MODEL, screen)
    run.explore(150)
    before = run.elbo()
    run.mixing.reorder(torch.tensor([3, 1, 2, 0, 4]))
    run.mixing.standardise(run.mixing.unmix(run.y)[0])
    assert run.elbo() < before - 0.1
    run.reassign()
    assert run.elbo() == pytest.approx(before, abs=0.05)


def test_latents_behind_a_mixing_are_recovered_and_the_seed_decides(world: Identifiable, screen: pv.Screen) -> None:
    test = pv.Screen.from_anndata(world.held_out, "condition", scale="normalised")
    one, other = (unmix(MODEL, screen, LeakyMixing(layers=1), SHORT, seed=1) for _ in range(2))
    z_b, z_r = one.latents(test)
    assert np.array_equal(z_r, other.latents(test)[1])
    assert r2_linear(z_r, world.z_responsive[WORLD.train :]) > 0.9
    assert r2_linear(z_b, world.z_background[WORLD.train :]) > 0.9
    assert one.graphs().shape == (6, 2, 2)
    assert len(one.tried) == 4


def test_a_penalty_on_pairs_is_smaller_where_it_was_asked_for() -> None:
    world = identifiable(replace(WORLD, paired=True), seed=0)
    screen = pv.Screen.from_anndata(world.adata, "condition", scale="normalised")
    few = UnmixSettings(trials=((1, 100),), steps=0)
    penalties = [
        unmix(MODEL.replace(alignment=PenaltyOnly(weight=w)), screen, settings=few, partners=world.partner).penalty
        for w in (0.01, 20.0)
    ]
    assert penalties[1] < 0.5 * penalties[0]


def test_what_cannot_be_unmixed_is_refused(screen: pv.Screen) -> None:
    with pytest.raises(InputError, match="responsive"):
        unmix(MODEL.replace(responsive=None), screen)
    with pytest.raises(InputError, match="fewer latents"):
        unmix(MODEL.replace(background=50), screen)
    with pytest.raises(InputError, match="control"):
        unmix(MODEL, screen.restrict(["P01"]))
    with pytest.raises(InputError, match="trials"):
        UnmixSettings(trials=((1, 10), (2, 10)))
