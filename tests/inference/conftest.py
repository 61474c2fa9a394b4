"""Tiny simulated screens, and one thread so that what is timed or repeated does not depend on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from pvae_pyro.screen import Screen
from pvae_pyro.simulate import SimulatedScreen, simulate

SIZES = {"targets": 8, "doubles": 4, "controls": 120, "cells_per_condition": 20, "genes": 40}


@cache
def _simulated(preset: str, seed: int, overrides: tuple[tuple[str, Any], ...]) -> SimulatedScreen:
    return simulate(preset, seed=seed, **dict(overrides))


@pytest.fixture(scope="session")
def world() -> Callable[..., SimulatedScreen]:
    """A small world: `world("default", seed=1, doubles=0)`; 'default' has counts, 'linear-gaussian' has not."""

    def make(preset: str = "linear-gaussian", seed: int = 1, **overrides: Any) -> SimulatedScreen:
        return _simulated(preset, seed, tuple(sorted((SIZES | overrides).items())))

    return make


@pytest.fixture(scope="session")
def screen(world: Callable[..., SimulatedScreen]) -> Callable[..., Screen]:
    """The screen of a small world."""

    def make(preset: str = "linear-gaussian", seed: int = 1, **overrides: Any) -> Screen:
        return Screen.from_anndata(world(preset, seed, **overrides).adata, "condition", batch_key="batch")

    return make


@pytest.fixture(autouse=True)
def random_numbers_are_left_alone() -> Iterator[None]:
    """No test, and no fit inside it, may move torch's global generator for the next one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
