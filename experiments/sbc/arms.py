"""The arms: one guide each; a seed is one simulation, its rows the rank of every quantity's truth among posterior draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

import pvae_pyro as pv
from pvae_pyro.guides import Amortized, SampledGuide
from pvae_pyro.inference.sampling import sample_globals
from pvae_pyro.story import Story

from ..run_arms import Rows
from .quantities import fresh, unseen_pairs, values
from .world import SETTINGS, World, draw_world, fitted

DRAWS, SIMULATIONS = 99, 200
COVERED = range(2000, 2030)  # seeds of the arm "coverage", seen nowhere else
SAMPLED = pv.Sampled(chains=DRAWS, burn_in=80, kept=4, thin=5)  # as many chains as draws: those of one chain are not independent
GUIDES: dict[str, Amortized] = {"sampled": SAMPLED, "amortized": pv.Amortized(), "flow": pv.Flow()}
SVI = "low-rank"  # what `Sampled` is before it samples: judged on the same fits


def simulated(guide: Amortized, settings: pv.FitSettings, seed: int) -> Rows:
    """Ranks 0 to 99, ties broken at random; `settings.epochs` = 0 judges the closed-form start."""
    world = draw_world(seed)
    story, q = fitted(world, guide, seed, settings=settings)
    random = np.random.default_rng([seed, 1])
    truth = {name: torch.as_tensor(np.asarray(value)) for name, value in world.truth.sites.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        with drawn_axes(story):
            true = values(story, q, truth, fresh(random), world.screen)

        def judged(draws: Iterable[dict[str, Tensor]], suffix: str = "") -> Rows:
            return _ranks(true, [values(story, q, one, fresh(random), world.screen) for one in draws], random, suffix)

        rows = judged((q.sample_globals() for _ in range(DRAWS)), f", {SVI}" if isinstance(q, SampledGuide) else "")
        if isinstance(q, SampledGuide):
            rows += judged(_last_draws(q, world, seed))
            rows.append(("chains", "r_hat", float(q.r_hat)))
    return rows


def coverage(settings: pv.FitSettings, seed: int, guide: pv.Sampled = SAMPLED) -> Rows:
    """Share of untrained pairs' genes inside 90 % intervals: 90 of the 100 places among 99 draws."""
    world = draw_world(seed)
    story, q = fitted(world, guide, seed, settings=settings)
    assert isinstance(q, SampledGuide)
    truth = {name: torch.as_tensor(np.asarray(value)) for name, value in world.truth.sites.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        with drawn_axes(story):
            true = unseen_pairs(story, q, truth)

        def shares(draws: Iterable[dict[str, Tensor]], suffix: str = "") -> Rows:
            drawn = [unseen_pairs(story, q, one) for one in draws]
            below = {name: sum((one[name] < value).int() for one in drawn) for name, value in true.items()}
            return [(name, f"coverage_90{suffix}", float(((b >= 5) & (b <= 94)).double().mean())) for name, b in below.items()]

        rows = shares((q.sample_globals() for _ in range(DRAWS)), f", {SVI}")
        return rows + shares(_last_draws(q, world, seed))


def _last_draws(guide: SampledGuide, world: World, seed: int) -> list[dict[str, Tensor]]:
    """Run the chains; the last draw of each, by site."""
    sample_globals(guide, world.screen, np.arange(world.screen.n_cells), seed, False, "sbc")
    last = {name: part[-DRAWS:] for name, part in guide.draws().items()}
    return [{name: part[row] for name, part in last.items()} for row in range(DRAWS)]


def _ranks(true: dict[str, float], drawn: list[dict[str, float]], random: np.random.Generator, suffix: str) -> Rows:
    rows: Rows = []
    for name, value in true.items():
        draws = np.array([one[name] for one in drawn])
        tied = int((draws == value).sum())
        rank = int((draws < value).sum()) + int(random.integers(tied + 1))
        spread = max(float(draws.std(ddof=1)), 1e-12)
        rows += [(name, f"rank{suffix}", float(rank)), (name, f"z{suffix}", (value - float(draws.mean())) / spread)]
    return rows


@contextmanager
def drawn_axes(story: Story) -> Iterator[None]:
    """Inside, the rule for pairs is in the axes in which the true weights were drawn, not in those of the start."""
    own = {name: axis.clone() for name, axis in story.axes().items()}
    for name, axis in story.model.composition.buffers(story.n_latents).items():
        story.axes()[name].copy_(axis)
    yield
    for name, axis in own.items():
        story.axes()[name].copy_(axis)


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training and chains, nothing else."""
    trained = replace(SETTINGS, epochs=1) if smoke else SETTINGS
    guides = GUIDES | {"sampled": replace(SAMPLED, burn_in=6, thin=1)} if smoke else GUIDES
    out = {name: partial(simulated, guide, trained) for name, guide in guides.items()}
    out |= {"coverage": partial(coverage, trained)}
    return out | {"closed-form start": partial(simulated, pv.LowRank(), replace(SETTINGS, epochs=0))}


def seeds_of(arm: str) -> range:
    """The simulations of an arm; the others are run by name."""
    return COVERED if arm == "coverage" else range(SIMULATIONS if arm == "sampled" else 0)
