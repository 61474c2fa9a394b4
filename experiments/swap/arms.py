"""The arms: one fit each, named `regime what was swapped`, scored on pairs that no fit has seen.

Regimes: `simulated` (embedded demo screen, singles trained, its pairs scored), `singles` (semi-synthetic Norman, controls and
singles trained, odd doubles scored), `doubles` (even doubles trained, too), `cv` (five folds inside the even doubles: what
settings were chosen by; odd ones are in neither part).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import pvae_pyro as pv
from pvae_pyro.evaluation.baselines import baselines, oracle_baselines
from pvae_pyro.evaluation.scores import parity

from ..run_arms import Rows

DATA = Path(os.environ.get("PVAE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
DRAWS = 400
METRICS = ("l2", "delta_pearson", "crps", "log_score", "energy_score", "coverage_50", "coverage_90")

EFFECTS: dict[str, Callable[[], Any]] = {
    "spike-slab": pv.SpikeSlab, "horseshoe": pv.Horseshoe, "laplace": pv.LaplaceEffects, "normal": pv.NormalEffects
}  # fmt: skip
GUIDES: dict[str, Callable[[], Any]] = {"amortized": pv.Amortized, "low-rank": pv.LowRank, "flow": pv.Flow}
COMPOSITIONS: dict[str, Callable[[], Any]] = {
    "additive": pv.Additive,
    "scaled": partial(pv.Additive, scale=0.85, scale_spread=0.1),
    "saturating": pv.Saturating,
    "bilinear": pv.Bilinear,
}


@cache
def _norman() -> pv.Screen:
    return pv.Screen.from_anndata(DATA / "norman_semisynthetic.h5ad", "guide_ids", batch_key="gemgroup")


@cache
def _simulated(seed: int) -> pv.Screen:
    return pv.Screen.from_anndata(pv.simulate.simulate(seed=seed).adata, "condition", batch_key="batch")


def _pairs(screen: pv.Screen, which: str) -> list[str]:
    return [c for c in screen.conditions if "+" in c and parity(c) == which]


def _scored(
    model: pv.PerturbedVAE, guide: Any, settings: pv.FitSettings, seed: int, split: pv.Split, chosen: Sequence[str],
    others: bool = False,
) -> Rows:  # fmt: skip
    assert split.held_out is not None
    truth = split.held_out.restrict(chosen).summary()
    fit = pv.fit(model, split.train, guide=guide, settings=settings, seed=seed, progress=False)
    table = pair_scores({"model": fit, "model, warm start": fit.at_start()}, truth, seed, others)
    groups = table.groupby(["method", "metric"], sort=False)["value"]
    return [(str(m), str(k), float(v.mean())) for (m, k), v in groups if k in METRICS]


def pair_scores(fits: Mapping[str, pv.Fit], truth: pv.ConditionSummary, seed: int, others: bool = False) -> pd.DataFrame:
    """Every score of every pair of `truth`, as the rows of `pv.evaluate`; `others`: with baselines of the first fit's screen."""
    counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    predictions: dict[str, pv.Prediction] = {}
    for name, one in fits.items():
        draws = one.predict(list(truth.conditions), draws=DRAWS, n_cells=counts, seed=seed).draws()
        predictions[name] = pv.Prediction(mean=draws.mean(axis=0, dtype=np.float64), draws=draws)
    training = next(iter(fits.values())).training
    if others:
        predictions |= baselines(training, truth.design, truth.n_cells, truth.targets)
        predictions |= oracle_baselines(training, truth)
    i = training.index("control")
    control = (training.mean[i], training.variance[i], int(training.n_cells[i]))
    return pv.evaluate(truth, predictions, control).rows


def _run(regime: str, model: pv.PerturbedVAE, guide: Any, epochs: int | None, others: bool, seed: int) -> Rows:
    settings = pv.FitSettings() if epochs is None else pv.FitSettings(epochs=epochs)
    if regime == "simulated":
        screen = _simulated(0)
        split = pv.split_screen(screen, "singles")
        return _scored(model, guide, settings, seed, split, [c for c in screen.conditions if "+" in c], others)
    screen = _norman()
    even, odd = _pairs(screen, "even"), _pairs(screen, "odd")
    if regime == "cv":
        order = np.random.default_rng(0).permutation(len(even))
        folds: list[Rows] = []
        for k in range(5):
            held = [even[i] for i in order[k::5]]
            rows = _scored(model, guide, settings, seed, pv.split_screen(screen, "all", odd + held), held, others)
            folds.append([(what, metric, value * len(held) / len(even)) for what, metric, value in rows])
        names = [(what, metric) for what, metric, _ in folds[0]]
        return [(*name, sum(fold[i][2] for fold in folds)) for i, name in enumerate(names)]
    split = pv.split_screen(screen, "singles") if regime == "singles" else pv.split_screen(screen, "all", odd)
    return _scored(model, guide, settings, seed, split, odd, others)


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, nothing else."""
    epochs = 1 if smoke else None
    out: dict[str, Callable[[int], Rows]] = {}

    def add(regime: str, what: str, guide: Any = None, epochs: int | None = epochs, others: bool = False, **parts: Any) -> None:
        model = pv.PerturbedVAE(**parts)
        out[f"{regime} {what}"] = partial(_run, regime, model, guide, epochs, others)

    for name, part in COMPOSITIONS.items():
        add("doubles", name, others=name == "additive", composition=part())
    for regime in ("simulated", "singles"):
        for (e, effects), (g, guide) in itertools.product(EFFECTS.items(), GUIDES.items()):
            add(regime, f"{e} {g}", guide(), others=(e, g) == ("spike-slab", "amortized"), effects=effects())
    # the start carries these priors, and training hardly moves it without pairs: enough to see what they do
    for name, part in COMPOSITIONS.items():
        add("singles", name, epochs=0, composition=part())
    for name, factor in (("half", 0.5), ("double", 2.0)):
        width, slab = pv.Interaction(), pv.SpikeSlab()
        bilinear = pv.Bilinear()
        add("singles", f"kappa {name}", epochs=0, interaction=pv.Interaction(width=width.width * factor))
        add("singles", f"stretch {name}", epochs=0, interaction=pv.Interaction(stretch=width.stretch * factor))
        add("singles", f"capacity {name}", epochs=0, composition=pv.Bilinear(capacity=bilinear.capacity * factor))
        add("singles", f"scale {name}", epochs=0, composition=pv.Bilinear(scale=bilinear.scale * factor))
        odds = factor * slab.inclusion / (1 - slab.inclusion)
        add("singles", f"inclusion odds {name}", epochs=0, effects=pv.SpikeSlab(inclusion=odds / (1 + odds)))
    for name, part in COMPOSITIONS.items():
        add("cv", name, epochs=0, others=name == "additive", composition=part())
    return out


def seeds_of(arm: str) -> tuple[int, ...]:
    """Three seeds where a number is claimed, one elsewhere."""
    return (0, 1, 2) if arm.startswith("doubles") else (0,)
