"""Draws of every global site under its own name, with their densities: what an export or a diagnosis of the guide reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..guides import AmortizedGuide
from .globals import draw_seed


@dataclass(frozen=True, eq=False)
class SiteDraws:
    """S joint draws of the global sites of one fit.

    values: by site (S, ...); plates: by site the plate of every further dimension, "" for one that stands in none (dimensions
    of length one without a plate are dropped); log_prior and log_q (S,) float64: log density of all sites together under the
    story and under the guide, each site on its own scale and gates as hard ones, by their mass.
    """

    values: dict[str, NDArray[np.float32]]
    plates: dict[str, tuple[str, ...]]
    log_prior: NDArray[np.float64]
    log_q: NDArray[np.float64]


@torch.no_grad()
def draw_sites(guide: AmortizedGuide, draws: int, seed: int) -> SiteDraws:
    """The sites in the draws that `draw_globals` makes with this seed.

    A site that the guide keeps at a point (`Map`) adds nothing to log_q.
    """
    story, values, densities = guide.story, [], np.zeros((draws, 2))
    plates: dict[str, tuple[str, ...]] = {}
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        for number in range(draws):
            torch.manual_seed(draw_seed(seed, number, 0))
            with poutine.trace() as under_guide:
                drawn = guide.sample_globals()
            with poutine.trace() as under_story, poutine.condition(data=drawn):
                story.globals()
            nodes = _stated(under_story.trace)
            values.append({name: _squeezed(node).numpy() for name, node in nodes.items()})
            plates = plates or {name: _plates(node) for name, node in nodes.items()}
            densities[number] = [_log_density(trace) for trace in (under_story.trace, under_guide.trace)]
    stacked = {name: np.stack([one[name] for one in values]) for name in plates}
    return SiteDraws(stacked, plates, densities[:, 0], densities[:, 1])


def _stated(trace: poutine.Trace) -> dict[str, Any]:
    nodes: dict[str, Any] = trace.nodes
    return {n: node for n, node in nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}


def _log_density(trace: poutine.Trace) -> float:
    """Sum over all sites, in double precision: there are tens of thousands of terms."""
    trace.compute_log_prob()
    return sum(float(node["log_prob"].double().sum()) for node in _stated(trace).values())


def _batch(node: Any) -> list[str]:
    """Plates of the dimensions left of a value's event."""
    names = [""] * (node["value"].dim() - len(node["fn"].event_shape))
    for plate in node["cond_indep_stack"]:
        names[plate.dim] = plate.name
    return names


def _squeezed(node: Any) -> Tensor:
    value: Tensor = node["value"]
    alone = [i for i, name in enumerate(_batch(node)) if not name and value.shape[i] == 1]
    return value.squeeze(alone) if alone else value


def _plates(node: Any) -> tuple[str, ...]:
    value, names = node["value"], _batch(node)
    kept = [name for i, name in enumerate(names) if name or value.shape[i] != 1]
    return (*kept, *[""] * len(node["fn"].event_shape))
