"""The arms: one guide each; a seed is one simulation, its rows the rank of every quantity's truth among posterior draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import torch
from pyro import poutine

import pvae_pyro as pv
from pvae_pyro.guides import Amortized
from pvae_pyro.story import Story

from ..run_arms import Rows
from .quantities import fresh, values
from .world import SETTINGS, draw_world, fitted

DRAWS, SIMULATIONS = 99, 200
GUIDES: dict[str, Amortized] = {"low-rank": pv.LowRank(), "amortized": pv.Amortized(), "flow": pv.Flow()}


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
        drawn = [values(story, q, q.sample_globals(), fresh(random), world.screen) for _ in range(DRAWS)]
    rows: Rows = []
    for name, value in true.items():
        draws = np.array([one[name] for one in drawn])
        tied = int((draws == value).sum())
        rank = int((draws < value).sum()) + int(random.integers(tied + 1))
        spread = max(float(draws.std(ddof=1)), 1e-12)
        rows += [(name, "rank", float(rank)), (name, "z", (value - float(draws.mean())) / spread)]
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
    """Every arm by name; `smoke` shortens training, nothing else."""
    trained = replace(SETTINGS, epochs=1) if smoke else SETTINGS
    out = {name: partial(simulated, guide, trained) for name, guide in GUIDES.items()}
    return out | {"low-rank, closed-form start": partial(simulated, pv.LowRank(), replace(SETTINGS, epochs=0))}


def seeds_of(arm: str) -> range:
    """The simulations of an arm."""
    return range(SIMULATIONS)
