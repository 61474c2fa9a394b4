"""The arms: a screen, a likelihood, and what simulated and held-out cells look like side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

import pvae_pyro as pv
from pvae_pyro.inference.cells import CellStore
from pvae_pyro.screen import CONTROL

from ..first_light.arms import DATA, DRAWS
from ..run_arms import Arms, Rows
from .cells import cut, large_conditions, simulated, strata
from .checks import LEADING, WELL_SEEN, beyond, compared, effect_sizes, look

SCREENS = {"papalexi": ("papalexi_cells.h5ad", "target", "replicate"), "norman": ("norman_cells.h5ad", "condition", None)}
LIKELIHOODS: dict[str, Any] = {
    "gaussian": pv.Gaussian(),
    "negative-binomial": pv.NegativeBinomial(),
    "student-t": pv.StudentT(),
    "student-t-all-genes": pv.StudentT(tails_from=0.0),  # the same tails for genes that are mostly zero: a trap
}
N, SAMPLES = 1000, 100  # simulated cells a stratum; importance samples of a cell's latents and the globals


def check(screen_name: str, likelihood: Any, seed: int, smoke: bool = False) -> Rows:
    """Fit on four fifths of every condition's cells and compare new cells with the other fifth."""
    file, key, batch = SCREENS[screen_name]
    train, test = cut(pv.Screen.from_anndata(DATA / file, key, batch_key=batch), seed)
    settings = pv.FitSettings(epochs=1) if smoke else pv.FitSettings()
    fit = pv.fit(pv.PerturbedVAE(likelihood=likelihood), train, settings=settings, seed=seed)
    n, samples, draws = (50, 4, 10) if smoke else (N, SAMPLES, 50)

    names = large_conditions(test)
    parts = strata(train, test, names, fit.active)
    shown = train.expression[:, fit.active]
    well_seen = shown.getnnz(axis=0) / shown.shape[0] > WELL_SEEN
    leading = np.argsort(-np.asarray(shown.mean(axis=0)).ravel(), kind="stable")[:LEADING]
    cells = list(simulated(fit, parts, n, draws, seed))
    sets = {"held-out cells": [s.held_out for s in parts], "training cells": [s.trained for s in parts], "model": cells}
    looks = {what: look(parts, x, well_seen, leading) for what, x in sets.items()}
    truth, held_out = looks["held-out cells"], sum(len(s.held_out) for s in parts)
    rows: Rows = []
    for what, found in looks.items():
        rows += [(what, m, v) for m, v in compared(found, truth, well_seen, held_out).items()]
        rows += [(what, f"detected_{word}", float(v)) for word, v in zip(("low", "middle", "high"), found.detected, strict=True)]
    every = np.ones_like(well_seen)
    for suffix, genes in (("", every), ("_well_seen", well_seen), ("_rare", ~well_seen)):
        rows += [("model", metric + suffix, value) for metric, value in beyond(parts, cells, genes).items()]
    chosen = np.flatnonzero(np.isin(test.condition, [test.conditions.index(c) for c in names]))
    rows.append(("model", "cell_log_density", cell_log_density(fit, test, chosen, samples, seed)))
    rows.append(("model", "held_out_cells", float(held_out)))
    rows.append(("model", "well_seen_genes", float(well_seen.sum())))
    return rows + pseudobulk(fit, test, seed)


def cell_log_density(fit: pv.Fit, test: pv.Screen, rows: np.ndarray, samples: int, seed: int) -> float:
    """Mean log density of held-out cells in nats, by importance sampling: each sample draws the globals and every cell's latents.

    Densities of log expression and masses of counts are not comparable with each other.
    """
    story, guide = fit.modules()
    genes = [str(g) for g in fit.genes[fit.active]]
    inner = test.select_genes(genes)
    store = CellStore(inner, rows, fit.model.likelihood.observes, torch.device("cpu"))
    cells = store.take(np.arange(len(rows)))
    position = torch.tensor([fit.conditions.index(c) for c in inner.conditions])
    batches = torch.tensor([fit.batches.index(b) for b in inner.batches])
    cells = type(cells)(cells.expression, cells.observed, position[cells.condition], batches[cells.batch], cells.library)
    index, logs = torch.arange(len(rows)), []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for _ in range(samples):
            q = poutine.trace(guide).get_trace(cells, index)
            p = poutine.trace(poutine.replay(story, trace=q)).get_trace(cells, index)
            logs.append(_of_cells(p) - _of_cells(q))
    return float((torch.logsumexp(torch.stack(logs), 0) - np.log(samples)).mean())


def _of_cells(trace: poutine.Trace) -> torch.Tensor:
    """Log density of the sites inside the plate of cells, (cells,)."""
    trace.compute_log_prob()
    nodes = [n for n in trace.nodes.values() if n["type"] == "sample" and not site_is_subsample(n)]
    mine = [n["unscaled_log_prob"] for n in nodes if any(f.name == "cells" for f in n["cond_indep_stack"])]
    return torch.stack(mine).sum(0)


def pseudobulk(fit: pv.Fit, test: pv.Screen, seed: int) -> Rows:
    """Held-out cells' means of every condition: distance against that of the training cells' own mean, CRPS, coverage, sizes of
    effects."""
    held_out = test.summary()
    truth = held_out.restrict([c for c in test.conditions if c != CONTROL])
    own = np.stack([fit.training.mean[fit.training.index(c)] for c in truth.conditions])
    counts = dict(zip(held_out.conditions, held_out.n_cells.tolist(), strict=True))
    drawn = fit.predict([*truth.conditions, CONTROL], draws=DRAWS, n_cells=counts, seed=seed).draws()
    draws, control_draws = drawn[:, :-1], drawn[:, -1:]
    mean = draws.mean(axis=0, dtype=np.float64)
    ratio = np.linalg.norm(mean - truth.mean, axis=1) / np.linalg.norm(own - truth.mean, axis=1)
    i = fit.training.index(CONTROL)
    control = (fit.training.mean[i], fit.training.variance[i], int(fit.training.n_cells[i]))
    table = pv.evaluate(truth, {"model": pv.Prediction(mean=mean, draws=draws)}, control).rows
    scores = table.groupby("metric")["value"].mean()
    rows: Rows = [("model", "l2_ratio_to_own_mean", float(ratio.mean()))]
    rows += [("model", metric, float(scores[metric])) for metric in ("l2", "crps", "coverage_50", "coverage_90")]
    reference = held_out.restrict([CONTROL])
    sizes = effect_sizes(draws - control_draws, truth.mean - reference.mean, fit.active)
    return rows + [("model", metric, value) for metric, value in sizes.items()]


def arms(smoke: bool = False) -> Arms:
    """Every arm by name; `smoke` shortens training and sampling, nothing else."""
    out: dict[str, Callable[[int], Rows]] = {}
    for screen in SCREENS:
        for name, part in LIKELIHOODS.items():
            out[f"{screen}-{name}"] = lambda seed, s=screen, k=part: check(s, k, seed, smoke)  # type: ignore[misc]
    return out
