"""The arms: one fit on 80 % of every condition's cells; a probe for each representation, scored on the other 20 %."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import pvae_pyro as pv
from pvae_pyro.screen import CONTROL

from ..run_arms import Rows
from ..swap.arms import DATA, _norman, _simulated
from .probing import chance, cross_validated, scores
from .representations import BACKGROUND, RESPONSIVE, latents, without_model

HELD_OUT = 0.2


def screen_of(name: str) -> pv.Screen:
    """Semi-synthetic Norman, controls and singles; real Papalexi (singles only); without a file, singles of the demo's world."""
    if name == "simulated":
        return pv.split_screen(_simulated(0), "singles").train
    if name == "norman":
        return pv.split_screen(_norman(), "singles").train
    return pv.Screen.from_anndata(DATA / "papalexi_cells.h5ad", "target", batch_key="replicate")


def cut(screen: pv.Screen, seed: int) -> tuple[pv.Screen, pv.Screen]:
    """Cells to train on and cells held out, the same share of every condition."""
    rows, held_out = pv.splits.validation_slice(screen, HELD_OUT, seed)
    return screen.cells(rows), screen.cells(held_out)


def run(name: str, model: pv.PerturbedVAE, settings: pv.FitSettings, seed: int) -> Rows:
    """Fit, encode and probe; control cells help the fit and have no label to be named."""
    train, test = cut(screen_of(name), seed)
    fit = pv.fit(model, train, settings=settings, seed=seed, progress=False)
    few = len(fit.state["story.effect_scale"])
    both = without_model(train, test, few, few + model.background)
    both = tuple(made | latents(fit, cells) for made, cells in zip(both, (train, test), strict=True))
    start = [latents(fit.at_start(), cells) for cells in (train, test)]
    for made, at_start in zip(both, start, strict=True):
        made.update({f"{one}, warm start": at_start[one] for one in (BACKGROUND, RESPONSIVE)})
    label = [np.array(cells.conditions)[cells.condition] for cells in (train, test)]
    names = {condition: i for i, condition in enumerate(sorted(set(label[1]) - {CONTROL}))}
    kept = [np.isin(one, list(names)) for one in label]
    y, new_y = (np.array([names[c] for c in one[rows]]) for one, rows in zip(label, kept, strict=True))
    rows: Rows = [("chance", metric, value) for metric, value in chance(new_y).items()]
    rows += [("cells", "trained", float(len(y))), ("cells", "scored", float(len(new_y)))]
    for what in both[0]:
        x, new_x = (made[what][rows] for made, rows in zip(both, kept, strict=True))
        found = scores(x, y, new_x, new_y, seed)
        found["balanced_accuracy_unseen"] = cross_validated(new_x, new_y, seed)
        rows += [(what, metric, value) for metric, value in found.items()]
        rows.append((what, "features", float(x.shape[1])))
    rows += [("fit", key, fit.history[key][-1]) for key in ("leakage_background", "leakage_responsive")]
    return rows


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training and adds a simulated screen, for machines without the files."""
    settings = pv.FitSettings(epochs=1) if smoke else pv.FitSettings()
    models = {"": pv.PerturbedVAE(), ", no alignment": pv.PerturbedVAE(alignment=pv.NoAlignment())}
    names = ("papalexi", "norman", *(["simulated"] if smoke else []))
    return {f"{name}{suffix}": partial(run, name, model, settings) for name in names for suffix, model in models.items()}
