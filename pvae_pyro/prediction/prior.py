"""Prior predictive simulation: the story run unconditioned for the cells of a screen or of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from scipy import sparse
from torch import Tensor

from ..errors import InputError
from ..guides import Amortized, AmortizedGuide
from ..inference.admission import check_screen
from ..inference.restart import build
from ..inference.svi import FitSettings
from ..screen import Screen
from ..story import Cells, PerturbedVAE, Story, checks
from .globals import draw_seed
from .plan import Layout, ScreenPlan

Array = NDArray[np.float32]
_BLOCK = 4_000_000  # values of expression that are drawn at once
_FROM_CELLS = ("loadings, levels, typical noise and the typical size of effects are the closed-form start of these cells "
               "(so perturbed cells inform them), everything else is drawn")  # fmt: skip


@dataclass(frozen=True)
class FromPrior(Amortized):
    """A guide whose globals follow the prior: what predictions do with a posterior, they do with the prior, too."""

    def build(self, story: Story) -> AmortizedGuide:
        return PriorGuide(self, story)


class PriorGuide(AmortizedGuide):
    """Draws every global from the story itself; its encoders are not used."""

    def sample_globals(self) -> dict[str, Tensor]:
        with poutine.trace() as drawn:
            self.story.globals()
        return _values(drawn.trace)


@dataclass(frozen=True, eq=False)
class Prior:
    """A prior ready to draw from: its guide (with the story), the layout, which genes (G,) are drawn, and what is assumed."""

    guide: AmortizedGuide
    layout: Layout
    active: NDArray[np.bool_]
    note: str


@dataclass(frozen=True, eq=False)
class PriorTruth:
    """What was drawn: `sites` by name, and what follows from them. P targets, K latents, B background latents, G genes.

    effects (P, K) w; shift (C, K) m_d with interactions, residual (C, G) r_d; z_background (N, B), z_responsive (N, K);
    not drawn, but given: unit (K,), loadings_responsive (K, G), loadings_background (B, G), intercept (batches, G).
    Genes are the drawn ones (`SimulatedCells.active`).
    """

    sites: dict[str, Array]
    effects: Array
    shift: Array
    residual: Array
    z_background: Array
    z_responsive: Array
    unit: Array
    loadings_responsive: Array
    loadings_background: Array
    intercept: Array


@dataclass(frozen=True, eq=False)
class SimulatedCells:
    """Cells that a prior expects, and the truth behind them.

    `adata`: X is raw counts (CSR), or log expression with what fell below zero set to zero, since no file may hold it; the layer
    "drawn" then has the values as drawn, and `below_zero` is their share. `obs`: condition (canonical), batch, and the
    library size that was given. `Screen.from_anndata(adata, "condition", batch_key="batch")` reads it back.
    `active` (G,): genes that were drawn; those without a count in the cells that the start is from are zero.
    """

    adata: AnnData
    truth: PriorTruth
    active: NDArray[np.bool_]
    below_zero: float
    note: str


def simulate(model: PerturbedVAE, screen_like: Screen | ScreenPlan, seed: int = 0, start: bool = True) -> SimulatedCells:
    """One draw of every global from its prior, then the cells of `screen_like`: its conditions, batches and library sizes.

    The program is the one that `fit` runs, unconditioned. Loadings, intercepts and the centres of noise and effect sizes
    are parameters of the story, not random, so a prior is conditional on them: with a Screen and `start`, on the closed-form
    start that `fit` would make of these cells; with a `ScreenPlan` (or the layout of a Screen, `start=False`), on
    random orthonormal loadings and the scales that the plan states. The same seed gives the same cells.
    Raises InputError for anything else than these two, a negative seed, or what `fit` would refuse.
    """
    prior = prepare(model, screen_like, seed, start)
    story, layout = prior.guide.story, prior.layout
    n, n_genes = len(layout.condition), len(layout.genes)
    counts = model.likelihood.observes == "counts"
    size = max(_BLOCK // n_genes, 1)
    drawn, latents = [], []
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(draw_seed(seed, 0, 0))  # as the first draw of a summary with this seed
        with poutine.block():
            values = prior.guide.sample_globals()
        g = prior.guide.assemble(values)
        torch.manual_seed(draw_seed(seed, 0, 2))
        program = poutine.condition(poutine.uncondition(story), data=values)
        for first in range(0, n, size):
            rows = np.arange(first, min(first + size, n))
            cell = _values(poutine.trace(program).get_trace(_cells(layout, rows), torch.as_tensor(rows)))
            block = np.zeros((len(rows), n_genes), dtype=np.float32)
            block[:, prior.active] = cell["x"].numpy()
            drawn.append(sparse.csr_matrix(block) if counts else block)
            latents.append((cell["z_b"].numpy(), cell["z_r"].numpy()))
    z_background, z_responsive = (np.concatenate(z) for z in zip(*latents, strict=True))
    truth = PriorTruth(
        sites={name: value.numpy() for name, value in values.items()},
        effects=g.effects.numpy(),
        shift=g.shift.numpy(),
        residual=g.residual.numpy(),
        z_background=z_background,
        z_responsive=z_responsive,
        unit=story.unit.numpy(),
        loadings_responsive=(story.decoder.responsive.detach() + (0.0 if g.loadings is None else g.loadings)).numpy(),
        loadings_background=story.decoder.background.detach().numpy(),
        intercept=story.decoder.intercept.detach().numpy(),
    )
    adata, below_zero = _anndata(layout, drawn, counts)
    adata.uns["note"] = f"Simulated from a prior of pvae_pyro, seed {seed}, not measured: {prior.note}."
    return SimulatedCells(adata, truth, prior.active, below_zero, prior.note)


def prepare(model: PerturbedVAE, screen_like: Screen | ScreenPlan, seed: int, start: bool) -> Prior:
    """The prior for the conditions of a screen or plan; see `simulate`."""
    if not isinstance(screen_like, Screen | ScreenPlan):
        raise InputError(
            f"a prior needs a Screen or a ScreenPlan to draw cells for, but {type(screen_like).__name__} was given; "
            "read a file by Screen.from_anndata or say ScreenPlan({'control': 500, 'A': 100})."
        )
    checks.whole(0, seed=seed)
    if isinstance(screen_like, ScreenPlan):
        return _planned(model, screen_like, screen_like.layout(), seed)
    check_screen(model, screen_like, seed)
    if not start:
        return _planned(model, ScreenPlan(genes=screen_like.n_genes), screen_like, seed)
    active = np.asarray(abs(screen_like.expression).sum(axis=0)).ravel() > 0
    seen = screen_like if active.all() else screen_like.select_genes([str(g) for g in screen_like.genes[active]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, guide = build(model, FromPrior(), FitSettings(), seen, np.arange(seen.n_cells))
    return Prior(guide.eval(), screen_like, active, _FROM_CELLS)


@torch.no_grad()
def _planned(model: PerturbedVAE, plan: ScreenPlan, layout: Layout, seed: int) -> Prior:
    """A story at the scales of the plan, with random orthonormal loadings."""
    n_genes, background = len(layout.genes), model.background
    latents = model.responsive or min(30, len(layout.targets))
    if latents + background > n_genes:
        raise InputError(
            f"{n_genes} genes have no {latents + background} orthonormal loadings ({latents} responsive, {background} "
            "background); ask for more genes, or for fewer latents by responsive and background."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(seed, 0, 3))
        design = torch.as_tensor(np.asarray(layout.design, dtype=np.float32))
        story = Story(model, design, len(layout.condition), len(layout.batches), n_genes, latents)
        axes = plan.loading * torch.linalg.qr(torch.randn(n_genes, latents + background))[0].T
        guide = FromPrior().build(story)
    counts, level = model.likelihood.observes == "counts", float(np.log1p(1e4 / n_genes))
    story.level.fill_(level)
    story.effect_scale.fill_(plan.effect)
    story.typical.fill_(plan.effect)
    story.noise_start.fill_(plan.noise**-2 if counts else plan.noise)
    story.spread.fill_(plan.noise)
    if hasattr(story, "loadings_sd"):  # as least squares would tell them from these cells
        perturbed = int((layout.design[layout.condition] != 0).any(-1).sum())
        story.loadings_sd.fill_(plan.noise / (plan.effect * max(perturbed, 1) ** 0.5))
    story.decoder.responsive.copy_(axes[:latents])
    story.decoder.background.copy_(axes[latents:])
    story.decoder.intercept.fill_(_predictor_at(story, level))
    note = (f"loadings are random and orthonormal, {plan.loading:g} long, effects of typical size {plan.effect:g}, noise around "
            f"{plan.noise:g} and the level {level:.3g} for every gene are assumed, not measured")  # fmt: skip
    return Prior(guide.eval(), layout, np.ones(n_genes, dtype=bool), note)


def _predictor_at(story: Story, level: float) -> float:
    """Linear predictor at which a cell's expression is the level."""
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    means = story.model.likelihood.mean(grid.unsqueeze(1), story.level[:1].double())[:, 0]
    return float(np.interp(level, means.numpy(), grid.numpy()))


def _values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values of all sites."""
    nodes: dict[str, Any] = trace.nodes
    return {n: node["value"] for n, node in nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}


def _cells(layout: Layout, rows: NDArray[np.int64]) -> Cells:
    """Cells as the program sees them; nothing is observed, so their expression is empty."""
    nothing = torch.zeros(len(rows), 0)
    condition, batch = torch.as_tensor(layout.condition[rows]), torch.as_tensor(layout.batch[rows])
    return Cells(nothing, nothing, condition, batch, torch.as_tensor(layout.library[rows], dtype=torch.float32))


def _anndata(layout: Layout, drawn: list[Any], counts: bool) -> tuple[AnnData, float]:
    """The cells as a file would hold them, and the share of drawn values below zero."""
    x = sparse.vstack(drawn, format="csr") if counts else np.concatenate(drawn)
    below = 0.0 if counts else float((x < 0).mean())
    adata = AnnData(
        X=np.maximum(x, 0) if below else x,
        obs=pd.DataFrame(
            {
                "condition": pd.Categorical(np.array(layout.conditions)[layout.condition]),
                "batch": pd.Categorical(np.array(layout.batches)[layout.batch]),
                "library": layout.library,
            },
            index=[f"cell{number:06d}" for number in range(1, len(layout.condition) + 1)],
        ),
        var=pd.DataFrame(index=[str(g) for g in layout.genes]),
    )
    if below:
        adata.layers["drawn"] = x
    return adata, below
