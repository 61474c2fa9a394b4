"""Sparse effects of a simulated world, its loadings known: sparse priors must find them better than a normal one."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from pvae_pyro.guides import Amortized
from pvae_pyro.inference import FitSettings
from pvae_pyro.inference.cells import CellStore
from pvae_pyro.inference.starting import apply_start
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.inference.warm_start import Start, closed_form
from pvae_pyro.screen import CONTROL, Screen
from pvae_pyro.simulate import Truth, simulate
from pvae_pyro.story import (
    Gaussian,
    Horseshoe,
    LaplaceEffects,
    NoAlignment,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
    Story,
)

OPEN, SIZE = 0.15, 1.0  # share of effects that are not zero, and their sd
SEEDS, STEPS = range(3), 50


def known(truth: Truth, screen: Screen, model: PerturbedVAE) -> Start:
    """A start at the true loadings, noise and size of effects; shifts by generalised least squares along the loadings."""
    rows = np.arange(screen.n_cells)
    start, n = closed_form(model, screen, rows), np.bincount(screen.condition)
    r, b, sd = truth.loadings_responsive.T, truth.loadings_background.T, np.asarray(truth.noise_sd)
    within = np.linalg.inv(np.diag(sd**2) + b.T @ b + r.T @ r)
    weight = np.linalg.solve(r @ within @ r.T, r @ within)  # (latents, genes)
    scores = (start.variation.means - truth.base) @ weight.T
    scores[screen.conditions.index(CONTROL)] = 0
    score_sd = np.sqrt(np.diag(weight @ np.linalg.inv(within) @ weight.T) / n[:, None])
    v = start.variation
    variation = dataclasses.replace(v, sd=sd, values=np.full_like(v.values, v.rest))  # each gene's noise its own
    return dataclasses.replace(
        start, unit=np.ones(len(r)), intercept=truth.base[None], centre=truth.base[None], responsive=r, background=b,
        scores=scores, score_sd=score_sd, scale=np.full(len(r), SIZE * OPEN**0.5), noise=sd, slope=np.ones_like(sd),
        variation=variation,
    )  # fmt: skip


def rmse(w: np.ndarray, truth: Truth) -> float:
    return float(np.sqrt(((w - truth.effects) ** 2).mean()))


@cache
def errors(effects: Any, seed: int) -> tuple[float, float]:
    """Errors of the posterior mean of w: after a small fit, and of the conjugate one under a normal prior of the same size."""
    world = simulate("linear-gaussian", seed=seed, targets=40, doubles=0, controls=200, cells_per_condition=10, genes=50,
                     responsive=4, background=2, gate_probability=OPEN, effect_size=SIZE, edge_probability=0.0, drive=0.0,
                     noise_modulation=0.0)  # fmt: skip
    screen, truth = Screen.from_anndata(world.adata, "condition"), world.truth
    model = PerturbedVAE(effects=effects, graph=NoGraph(), alignment=NoAlignment(), likelihood=Gaussian(link="identity"),
                         responsive=4, background=2, hidden=0)  # fmt: skip
    start = known(truth, screen, model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        story = Story(model, torch.as_tensor(screen.design), screen.n_cells, 1, screen.n_genes, 4)
        guide = Amortized().build(story)
        apply_start(start, story, guide)
        story.requires_grad_(False)  # the decoder
        store = CellStore(screen, np.arange(screen.n_cells), "expression", torch.device("cpu"))
        trainer = Trainer(story, guide, store, store, FitSettings(globals_rate=80.0), seed)
        with pyro.validation_enabled(False):
            for number in range(STEPS):
                trainer.step(np.arange(len(store)), number / STEPS)
        with torch.no_grad():
            w = torch.stack([guide.shared(guide.family.sample())["effects"] for _ in range(100)]).mean(0)
    assert truth.targets == screen.targets
    rows = [screen.conditions.index(target) for target in truth.targets]
    shrink = start.scale**2 / (start.scale**2 + start.score_sd[rows] ** 2)
    return rmse(w.numpy(), truth), rmse(shrink * start.scores[rows], truth)


def test_a_normal_prior_recovers_as_well_as_its_conjugate_posterior_and_no_better() -> None:
    found, exact = np.array([errors(NormalEffects(), seed) for seed in SEEDS]).T
    np.testing.assert_allclose(found, exact, rtol=0.1)


@pytest.mark.parametrize(("prior", "most"), [(Horseshoe(), 0.8), (LaplaceEffects(), 0.87)], ids=["horseshoe", "laplace"])
def test_sparse_priors_recover_sparse_effects_better_than_a_normal_one(prior: Any, most: float) -> None:
    """On five worlds errors were 0.73 (horseshoe) and 0.81 (Laplace) of a normal prior's on average, and smaller in each."""
    ratio = np.array([errors(prior, seed)[0] / errors(NormalEffects(), seed)[0] for seed in SEEDS])
    assert ratio.mean() < most
    assert ratio.max() < 0.95
