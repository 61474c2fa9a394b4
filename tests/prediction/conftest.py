"""Fits of tiny screens, with what they learnt overwritten where a test needs a known truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import (
    Additive,
    FixedGraph,
    Gaussian,
    Interaction,
    ModulatedGraph,
    NegativeBinomial,
    NoGraph,
    PerturbedVAE,
    Saturating,
)

ADDITIVE = {"composition": Additive(), "graph": NoGraph(), "likelihood": Gaussian(link="identity"),
            "interaction": Interaction(width=0.0, width_spread=0.0, stretch=0.0, outside=0.0, surprise_spread=0.0)}  # fmt: skip
MODELS = {
    "default": PerturbedVAE(background=3, hidden=4),
    "counts": PerturbedVAE(background=3, hidden=4, likelihood=NegativeBinomial()),
    "linear": PerturbedVAE(background=3, hidden=4, composition=Additive(), likelihood=Gaussian(link="identity")),
    "additive": PerturbedVAE(background=3, hidden=4, **ADDITIVE),  # type: ignore[arg-type]
    # nothing in it depends on how latents are numbered: no axes, no noise for each latent of an unseen pair
    "no graph": PerturbedVAE(background=3, hidden=4, graph=NoGraph(), composition=Saturating(),
                             interaction=Interaction(width=0.0)),
    "modulated": PerturbedVAE(background=3, hidden=4, graph=ModulatedGraph(density=0.5, modulation=0.3, coupling=0.1)),
    "fixed": PerturbedVAE(background=3, hidden=4, responsive=4, graph=FixedGraph(edges=((3, 0), (0, 1), (2, 1)))),
}


@cache
def _fitted(model: str, singles: bool) -> Fit:
    world = simulate("default", seed=1, targets=6, doubles=0 if singles else 3, controls=80, cells_per_condition=20,
                     genes=25, batches=2, batch_effect=0.4, background_loading_size=0.6)  # fmt: skip
    screen = Screen.from_anndata(world.adata, "condition", batch_key="batch")
    settings = FitSettings(epochs=1, batch_size=200, validation=0.0)
    return fit(MODELS[model], screen, settings=settings, device="cpu", progress=False, known_targets=("X1", "X2"))


@pytest.fixture(scope="session")
def fitted() -> Callable[..., Fit]:
    """`fitted(a name of MODELS, singles=False)`: six targets T01 to T06, and X1, X2 that nothing trained."""

    def make(model: str = "default", singles: bool = False, **replaced: Any) -> Fit:
        from dataclasses import replace

        return replace(_fitted(model, singles), **replaced) if replaced else _fitted(model, singles)

    return make


@pytest.fixture(autouse=True)
def random_numbers_are_left_alone() -> Iterator[None]:
    """Predictions are seeded on their own: whatever this generator holds must not matter."""
    with torch.random.fork_rng(devices=[]):
        yield
