"""Every choice of effects and guide, and every single swap, on real cells, written as TOML and as Python; run with -m slow."""

from __future__ import annotations

import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyro import poutine

from pvae_pyro.config import load_config
from pvae_pyro.guides import GUIDES
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.screen import Screen
from pvae_pyro.story import PARTS, PerturbedVAE

DATA = Path(os.environ.get("PVAE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "norman_cells.h5ad"
SETTINGS: dict[str, dict[str, Any]] = {"ensemble": {"n": 2}, "fixed": {"edges": [[0, 1], [0, 2]]}}
SITES = {"spike-slab": "gates", "horseshoe": "local_scale", "causal": "edge_gates", "bilinear": "pairing",
         "saturating": "capacity", "negative-binomial": "noise", "on": "penetrance"}  # fmt: skip
SWAPS = [(seam, name) for seam, names in PARTS.items() for name in names if seam != "effects"]
FOR_ALL = [name for name in GUIDES if name != "sampled"]  # which is refused for so many genes
CHOICES = [{"effects": e, "guide": g} for e, g in itertools.product(PARTS["effects"], FOR_ALL)] + [{s: n} for s, n in SWAPS]
QUESTION = ["CEBPE+KLF1", "KLF1"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.exists(), reason="norman_cells.h5ad is not here")]


@cache
def screen() -> Screen:
    return Screen.from_anndata(DATA, "condition")


def toml(choice: dict[str, str]) -> str:
    """The choice as a user's file."""
    def value(name: str) -> str:
        settings = {"name": name} | SETTINGS.get(name, {})
        return "{ " + ", ".join(f"{key} = {json.dumps(one)}" for key, one in settings.items()) + " }"

    story = "\n".join(f"{seam} = {value(name)}" for seam, name in choice.items() if seam != "guide")
    guide = choice.get("guide", "amortized")
    own = "\n".join(f"{key} = {json.dumps(one)}" for key, one in ({"name": guide} | SETTINGS.get(guide, {})).items())
    return f"[story]\nhidden = 8\n{story}\n[guide]\n{own}\n[fit]\nepochs = 2\n"


def made(name: str, cls: type) -> Any:
    return cls(**{key: tuple(map(tuple, one)) if key == "edges" else one for key, one in SETTINGS.get(name, {}).items()})


@cache
def default() -> np.ndarray:
    return predicted(fit(PerturbedVAE(hidden=8), screen(), settings=FitSettings(epochs=2), device="cpu", progress=False))


def predicted(one: Fit) -> np.ndarray:
    return one.predict(QUESTION, draws=10, seed=0).draws()


@pytest.mark.parametrize("choice", CHOICES, ids=["-".join(c.values()) for c in CHOICES])
def test_fits_two_epochs_and_predicts(choice: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "swap.toml"
    file.write_text(toml(choice))
    read = load_config(file)
    parts = {seam: made(name, PARTS[seam][name]) for seam, name in choice.items() if seam != "guide"}
    assert read.model == PerturbedVAE(hidden=8, **parts)
    assert read.guide == made(choice.get("guide", "amortized"), GUIDES[choice.get("guide", "amortized")])
    one = fit(read.model, screen(), guide=read.guide, settings=read.settings, device="cpu", progress=False)
    assert one.history["epoch"] == [0, 1, 2] and np.isfinite(one.history["loss"]).all()
    draws = predicted(one)
    assert np.isfinite(draws).all()
    is_default = read.model == PerturbedVAE(hidden=8) and choice.get("guide", "amortized") == "amortized"
    assert np.array_equal(draws, default()) == is_default
    story, _ = one.members[0].modules()
    with poutine.block(), poutine.trace() as trace:
        story.globals()
    for name in choice.values():
        assert SITES.get(name, "effects") in trace.trace.nodes
