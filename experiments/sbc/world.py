"""One simulation of the calibration check: globals from the prior, cells from the story, a fit that knows the decoder only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

import pvae_pyro as pv
from pvae_pyro.guides import Amortized, AmortizedGuide
from pvae_pyro.inference.cells import CellStore
from pvae_pyro.inference.covariance import cell_variation
from pvae_pyro.inference.starting import apply_start
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.inference.warm_start import Start
from pvae_pyro.prediction.plan import ScreenPlan
from pvae_pyro.prediction.prior import PriorTruth
from pvae_pyro.story import PerturbedVAE, Story

TARGETS = [f"T{i}" for i in range(6)]
PAIRS = ["+".join(p) for p in itertools.combinations(TARGETS, 2)]
TRAINED, UNTRAINED, UNSEEN = PAIRS[::2], PAIRS[1::2], PAIRS[1]
CELLS = 60  # of a condition
RESPONSIVE = 3
# as many axes as latents: the start turns them, and only then is the prior of the rule the same in all axes
PLAN = ScreenPlan({"control": 300} | dict.fromkeys(TARGETS + TRAINED, CELLS), genes=20, loading=10.0, noise=3.0)
FLOOR = 1000.0  # added to all values: files hold none below zero
MODEL = pv.PerturbedVAE(
    responsive=RESPONSIVE, background=2, hidden=0,
    likelihood=pv.Gaussian(link="identity"), composition=pv.Bilinear(rank=RESPONSIVE),
)  # fmt: skip
SETTINGS = pv.FitSettings(epochs=40, batch_size=256, loadings_rate=0.0, validation=0.0)


@dataclass(frozen=True, eq=False)
class World:
    """What a fit sees, and the truth behind it."""

    screen: pv.Screen
    truth: PriorTruth


def draw_world(seed: int, model: PerturbedVAE = MODEL) -> World:
    """Globals from their prior and the cells of the plan."""
    simulated = model.simulate(PLAN, seed=seed)
    adata, truth = simulated.adata, simulated.truth
    adata.X = adata.layers.pop("drawn", adata.X) + FLOOR
    screen = pv.Screen.from_anndata(adata, "condition", batch_key="batch")
    assert screen.scale != "counts" and screen.expression.min() > 0
    return World(screen, replace(truth, intercept=truth.intercept + FLOOR))


def known_start(world: World, model: PerturbedVAE = MODEL) -> Start:
    """The start at the true loadings and the prior's own scales, shifts of conditions by generalised least squares."""
    screen, truth = world.screen, world.truth
    rank = model.background + RESPONSIVE
    variation = cell_variation(screen.expression, screen.condition, screen.batch, rank, len(screen.batches))
    control = screen.conditions.index("control")
    n = np.bincount(screen.condition).astype(float)
    w_r, w_b = truth.loadings_responsive.astype(float), truth.loadings_background.astype(float)
    axes = variation.whiten(w_r)
    inverse = np.linalg.inv(axes @ axes.T)
    scores = variation.whiten(variation.means - variation.means[control]) @ axes.T @ inverse
    scores[control] = 0
    return Start(
        unit=np.ones(len(w_r)), intercept=truth.intercept.astype(float), centre=truth.intercept.astype(float),
        responsive=w_r, background=w_b, scores=scores, score_sd=np.sqrt(np.diag(inverse)) / np.sqrt(n)[:, None],
        scale=np.full(len(w_r), PLAN.effect), noise=variation.sd * np.sqrt(1 - variation.common), slope=np.ones(PLAN.genes),
        outside=np.full(PLAN.genes, PLAN.noise), level=truth.intercept[0].astype(float), variation=variation, penetrance={},
    )  # fmt: skip


def fitted(world: World, guide: Amortized, seed: int, model: PerturbedVAE = MODEL,
           settings: pv.FitSettings = SETTINGS) -> tuple[Story, AmortizedGuide]:  # fmt: skip
    """Story and guide after SVI of everything but the decoder, which is the true one: it has no prior to be calibrated by."""
    screen = world.screen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        design = torch.as_tensor(np.asarray(screen.design, dtype=np.float32))
        story = Story(model, design, screen.n_cells, 1, screen.n_genes, RESPONSIVE)
        amortized = guide.build(story)
        apply_start(known_start(world, model), story, amortized)
        story.effect_scale.fill_(PLAN.effect)  # the start moved the centres of priors: back to those that were drawn from
        story.typical.fill_(PLAN.effect)
        story.noise_start.fill_(PLAN.noise)
        story.spread.fill_(PLAN.noise)
        story.stretch_unit.fill_(1.0)
        amortized.family.follow_prior("effect_scale")
        story.decoder.requires_grad_(False)
        rows = np.arange(screen.n_cells)
        store, none = (CellStore(screen, r, "expression", torch.device("cpu")) for r in (rows, rows[:0]))
        trainer = Trainer(story, amortized, store, none, settings, seed)
        if settings.epochs:
            trainer.run(None, False, "sbc")
    return story.eval(), amortized.eval()

