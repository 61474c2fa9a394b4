"""The arms: the default with one thing changed, trained on controls and singles, every held-out pair scored.

Odd pairs are kept one by one, since arms are compared pair by pair; of even pairs the mean is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import pvae_pyro as pv
from pvae_pyro.evaluation.scores import parity

from ..run_arms import Rows
from ..swap.arms import _norman, _simulated, pair_scores
from .noise_site import NoiseSite, expected_at

METRICS = ("l2", "delta_pearson", "crps", "coverage_90")
DEFAULT = "default"
PAPER = {"responsive": 20, "background": 85}  # its best sizes; other totals are cut in this ratio
ACTIVE = 0.01  # variance over cells of E[z_b | x] of a background latent that is used


@dataclass(frozen=True)
class Arm:
    """`parts` of the model that are swapped; `noise_site`: the guide draws the noise; `warm_start` as in `FitSettings`."""

    parts: Mapping[str, Any] = field(default_factory=dict)
    noise_site: bool = False
    warm_start: bool = True


def variants() -> dict[str, Arm]:
    """Every arm by name, the default first; what the default already is, is left out."""
    default = pv.PerturbedVAE()
    named = {DEFAULT: Arm()}
    swaps: list[tuple[str, str, Any]] = [
        ("alignment", "none", pv.NoAlignment()),
        ("alignment", "centroid", pv.Centroid()),
        ("alignment", "pairwise, weight 0.05", pv.Pairwise()),
        ("alignment", "pairwise, weight 5", pv.Pairwise(weight=5.0)),
        ("graph", "none", pv.NoGraph()),
        ("graph", "causal", pv.CausalGraph()),
        ("graph", "modulated", pv.ModulatedGraph()),
        ("effects", "spike-slab", pv.SpikeSlab()),
        ("effects", "normal", pv.NormalEffects()),
        ("interaction", "off", pv.presets.OFF),
    ]
    named |= {f"{part}: {name}": Arm({part: one}) for part, name, one in swaps if one != getattr(default, part)}
    sizes = [(2, 8), (7, 28), (14, 61), (PAPER["responsive"], PAPER["background"]), (53, 52), (85, 20)]
    named |= {f"sizes: {r} + {b}": Arm({"responsive": r, "background": b}) for r, b in sizes}
    named |= {"start: random": Arm(warm_start=False), "noise as the site": Arm(noise_site=True)}
    named |= {"noise as the site, start: random": Arm(noise_site=True, warm_start=False)}
    published: dict[str, Any] = {"effects": pv.NormalEffects(), "graph": pv.ModulatedGraph(), "composition": pv.Additive()}
    published |= {"interaction": pv.presets.OFF, "alignment": pv.Pairwise(), **PAPER}
    named["as in the paper"] = Arm(published, noise_site=True, warm_start=False)
    none = published | {"alignment": pv.NoAlignment()}
    return named | {"as in the paper, alignment: none": Arm(none, noise_site=True, warm_start=False)}


def run(arm: Arm, smoke: bool, seed: int) -> Rows:
    """Fit and score one arm; `smoke`: one epoch on the small simulated screen."""
    torch.set_num_threads(1)
    screen = _simulated(0) if smoke else _norman()
    split = pv.split_screen(screen, "singles")
    assert split.held_out is not None
    fit = fitted(arm, split.train, seed, 1 if smoke else None)
    # the closed-form start hardly depends on the seed
    fits = {"model": fit} | ({"warm start": fit.at_start()} if arm.warm_start and seed == 0 else {})
    table = pair_scores(fits, split.held_out.summary(), seed)
    table = table[table["metric"].isin(METRICS) & table["method"].isin(fits)]
    table = table.assign(which=table["condition"].map(parity))
    mine = table["method"] == "model"
    odd = table[mine & (table["which"] == "odd")]
    rows: Rows = [(str(r["condition"]), str(r["metric"]), float(r["value"])) for r in odd.to_dict("records")]
    for (method, which, metric), values in table.groupby(["method", "which", "metric"], sort=False)["value"]:
        rows.append((f"{method}, {which} pairs", str(metric), float(values.mean())))
    return [*rows, *(("fit", name, value) for name, value in described(fit).items())]


def fitted(arm: Arm, train: pv.Screen, seed: int, epochs: int | None = None) -> pv.Fit:
    """One fit with the default settings but for what the arm changes; random starts have the step sizes of `FROM_RANDOM`."""
    model, guide, settings = pv.PerturbedVAE(**arm.parts), None, pv.FitSettings()
    if arm.noise_site or not arm.warm_start:
        start = pv.fit(model, train, settings=pv.FitSettings(epochs=0), seed=seed, progress=False)
        expected = expected_at(start)
        # a random start would take another number of latents, and two things would differ
        model = model.replace(responsive=expected.shape[1])
        guide = NoiseSite(expected=expected if arm.warm_start else None) if arm.noise_site else None
    if not arm.warm_start:
        settings = pv.presets.FROM_RANDOM
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    return pv.fit(model, train, guide=guide, settings=settings, seed=seed, progress=False)


def described(fit: pv.Fit) -> dict[str, float]:
    """Sizes, leakage and held-out loss of a fit, and whether its background is used: KL from the prior and active latents,
    over control cells."""
    loc, scale = (part.double().numpy() for part in fit.controls.chunk(2, -1))
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * np.log(scale)).sum(1)
    out = {"responsive": float(fit.state["story.effect_scale"].shape[0]), "background": float(loc.shape[1])}
    out |= {name: fit.history[name][-1] for name in ("held_out_loss", "leakage_background", "leakage_responsive")}
    return out | {"kl_background": float(kl.mean()), "active_background": float((loc.var(0) > ACTIVE).sum())}


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` takes another screen and one epoch, nothing else."""
    return {name: partial(run, arm, smoke) for name, arm in variants().items()}


def seeds_of(arm: str) -> tuple[int, ...]:
    """The seeds of an arm."""
    return (0, 1, 2)
