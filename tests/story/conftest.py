"""Small stories over every combination of the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from parts_support import CHOICES, SEAMS

from pvae_pyro.story import Cells, PerturbedVAE, Story


@pytest.fixture(params=CHOICES, ids=["-".join(names) for names in CHOICES])
def chosen(request: pytest.FixtureRequest) -> dict[str, str]:
    """Names of one combination of parts."""
    return dict(zip(SEAMS, request.param, strict=True))


@pytest.fixture
def build() -> Callable[..., Story]:
    """Story of three targets, two pairs, six genes, four responsive and two background latents unless said otherwise."""

    def make(design: Any = None, n_cells: int = 20, batches: int = 2, genes: int = 6, latents: int = 4, **parts: Any) -> Story:
        if design is None:
            design = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0.5, 2]]
        model = PerturbedVAE(responsive=latents, background=2, **parts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Story(model, torch.tensor(design, dtype=torch.float32), n_cells, batches, genes, latents)

    return make


@pytest.fixture
def cells_of() -> Callable[..., Cells]:
    """Random cells that a story can observe."""

    def make(story: Story, n: int, seed: int = 0) -> Cells:
        generator = torch.Generator().manual_seed(seed)
        counts = torch.poisson(3 * torch.ones(n, len(story.spread)), generator=generator)
        library = 2000 + 3000 * torch.rand(n, generator=generator)
        expression = torch.log1p(counts * (1e4 / library).unsqueeze(1))
        observed = counts if story.model.likelihood.observes == "counts" else expression
        condition = torch.randint(len(story.design), (n,), generator=generator)
        batch = torch.randint(len(story.decoder.intercept), (n,), generator=generator)
        return Cells(expression, observed, condition, batch, library)

    return make


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """The same random numbers whatever ran before, and none left behind."""
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(0)
        yield
