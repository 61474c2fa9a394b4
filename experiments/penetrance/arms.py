"""The arms: with escaping cells ("on") and without ("off") on the same cells and seed, in one arm, so that they can be paired."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import pvae_pyro as pv
from pvae_pyro.evaluation.scores import parity
from pvae_pyro.screen import CONTROL

from ..run_arms import Rows
from .density import log_density

DATA = Path(os.environ.get("PVAE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
DRAWS = 400
METRICS = ("l2", "delta_pearson", "crps", "coverage_90")
STRONG = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")  # receptor and signal of interferon: no response without them
KNOWN = 0.92  # share of the cells of the semi-synthetic screen that respond


def sizes(summary: pv.ConditionSummary, targets: Sequence[str]) -> np.ndarray:
    """Length of each target's measured shift over genes, in sds of control cells, its sampling noise taken off."""
    c = summary.index(CONTROL)
    sd = np.sqrt(np.maximum(summary.variance[c], 1e-3))
    rows = [summary.index(t) for t in targets]
    noise = (summary.variance[rows] / summary.n_cells[rows, None] + summary.variance[c] / summary.n_cells[c]) / sd**2
    return np.asarray(np.sqrt(np.maximum((((summary.mean[rows] - summary.mean[c]) / sd) ** 2 - noise).sum(1), 0)))


def compared(fits: dict[str, pv.Fit], test: pv.ConditionSummary, name: str, seed: int) -> Rows:
    """Scores of every fit, and paired differences from the first with their standard errors over conditions."""
    table = pv.compare(fits, test, draws=DRAWS, seed=seed).table
    assert table["stratum"].nunique() == 1  # every single of these doubles was trained
    table = table[table["metric"].isin(METRICS)]
    rows: Rows = [(f"{r.reference} [{name}]", r.metric, r.reference_value) for r in table.itertuples()
                  if r.method == table["method"].iloc[0]]  # fmt: skip
    for r in table.itertuples():
        rows += [
            (f"{r.method} [{name}]", r.metric, r.value),
            (f"{r.method} minus {r.reference} [{name}]", r.metric, r.difference),
            (f"{r.method} minus {r.reference}, standard error [{name}]", r.metric, r.standard_error),
        ]
    return rows


def rates(fit: pv.Fit, what: str) -> tuple[pd.DataFrame, Rows]:
    """The penetrance of every target with the size of its effect, and the same as rows."""
    table = fit.penetrance_table(draws=DRAWS).assign(size=sizes(fit.training, fit.targets))
    names = ("mean", "sd", "q05", "q95", "size")
    return table, [(f"{what} {r['target']}", n, float(r[n])) for r in table.to_dict("records") for n in names]


def norman(model: pv.PerturbedVAE, settings: pv.FitSettings, seed: int) -> Rows:
    """Controls and singles trained. Which rule of pairs is used is not in them: both are read off one fit."""
    screen = pv.Screen.from_anndata(DATA / "norman_semisynthetic.h5ad", "guide_ids", batch_key="gemgroup")
    split = pv.split_screen(screen, "singles")
    assert split.held_out is not None
    parts = {"off": pv.Full(), "on": pv.Mixture()}
    fits = {n: pv.fit(model.replace(penetrance=p), split.train, settings=settings, seed=seed, progress=False)
            for n, p in parts.items()}  # fmt: skip
    product = model.replace(penetrance=pv.Mixture(combined="product"))
    methods = fits | {"on, product": replace(fits["on"], model=product)}
    methods |= {f"{n}, warm start": f.at_start() for n, f in fits.items()}
    rows: Rows = []
    for name in ("odd", "even"):
        chosen = [c for c in split.held_out.conditions if parity(c) == name]
        rows += compared(methods, split.held_out.restrict(chosen).summary(), name, seed)
    for name, one in (("on", fits["on"]), ("on, warm start", fits["on"].at_start())):
        table, each = rates(one, f"{name}: rate of")
        rows += each
        table = table.sort_values("size")
        for i, rows_of in enumerate(np.array_split(np.arange(len(table)), 4)):
            quarter = table.iloc[rows_of]
            inside = (quarter["q05"] <= KNOWN) & (quarter["q95"] >= KNOWN)
            what = f"{name}: rates, quarter {i + 1} of effects"
            rows += [(what, "mean", float(quarter["mean"].mean())), (what, "sd", float(quarter["sd"].mean())),
                     (what, "covers_known", float(inside.mean()))]  # fmt: skip
    rows += [(n, "held_out_loss", float(f.history["held_out_loss"][-1])) for n, f in fits.items()]
    return rows


def papalexi(model: pv.PerturbedVAE, settings: pv.FitSettings, seed: int) -> Rows:
    """Real cells, a fifth of every condition held out: the nearness of its mean, and the log density of its cells."""
    screen = pv.Screen.from_anndata(DATA / "papalexi_cells.h5ad", "target", batch_key="replicate")
    generator = np.random.default_rng(seed)
    held = np.zeros(screen.n_cells, dtype=bool)
    for i in range(len(screen.conditions)):
        members = np.flatnonzero(screen.condition == i)
        held[generator.choice(members, len(members) // 5, replace=False)] = True
    train, test = screen.cells(np.flatnonzero(~held)), screen.cells(np.flatnonzero(held))
    truth = test.summary().restrict([c for c in test.conditions if c != CONTROL])
    counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    rows: Rows = []
    density, l2 = {}, {}
    for name, part in {"off": pv.Full(), "on": pv.Mixture()}.items():
        fit = pv.fit(model.replace(penetrance=part), train, settings=settings, seed=seed, progress=False)
        draws = fit.predict(list(truth.conditions), draws=DRAWS, n_cells=counts, seed=seed).draws()
        own = np.stack([fit.training.mean[fit.training.index(c)] for c in truth.conditions])
        reference = np.linalg.norm(own - truth.mean, axis=1)
        l2[name] = np.linalg.norm(draws.mean(0) - truth.mean, axis=1) / reference
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        rows += [(name, "l2_ratio_to_own_mean", float(l2[name].mean())),
                 (name, "coverage_90", float(((truth.mean >= low) & (truth.mean <= high)).mean()))]  # fmt: skip
        density[name], density[f"{name}, warm start"] = (log_density(f, test, seed) for f in (fit, fit.at_start()))
        if name == "on":
            rows += rates(fit, "on: rate of")[1]
            odds = fit.responding(test)
            for i, c in enumerate(test.conditions):
                rows.append((f"on: held-out cells of {c}", "responding", float(odds[test.condition == i].mean())))
    gap = l2["on"] - l2["off"]
    rows += [("on minus off", "l2_ratio_to_own_mean", float(gap.mean())),
             ("on minus off, standard error", "l2_ratio_to_own_mean", float(gap.std(ddof=1) / len(gap) ** 0.5))]  # fmt: skip
    of_cell = np.array(test.conditions)[test.condition]
    perturbed, strong = of_cell != CONTROL, np.isin(of_cell, STRONG)
    groups = {"all perturbed": perturbed, "control": ~perturbed, ", ".join(STRONG): strong, "other targets": perturbed & ~strong}
    for when, (what, members) in itertools.product(("", ", warm start"), groups.items()):
        gain = (density[f"on{when}"] - density[f"off{when}"])[members]
        error = float(gain.std(ddof=1) / len(gain) ** 0.5)
        rows += [(f"off{when}: {what}", "log_density", float(density[f"off{when}"][members].mean())),
                 (f"on minus off{when}: {what}", "log_density", float(gain.mean())),
                 (f"on minus off{when}, standard error: {what}", "log_density", error)]  # fmt: skip
    return rows


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, nothing else."""
    settings = pv.FitSettings(epochs=1) if smoke else pv.FitSettings()
    model, counts = pv.PerturbedVAE(), pv.PerturbedVAE(likelihood=pv.NegativeBinomial())
    return {
        "norman": partial(norman, model, settings),
        "papalexi-gaussian": partial(papalexi, model, settings),
        "papalexi-negative-binomial": partial(papalexi, counts, settings),
    }


def seeds_of(arm: str) -> Sequence[int]:
    """Seeds that an arm is run with."""
    return (0,) if arm == "papalexi-negative-binomial" else (0, 1, 2)
