"""The arms, one simulated world each: default and closed-form start on its singles, read on its pairs beside addition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import pvae_pyro as pv
from pvae_pyro.evaluation.baselines import ADDITIVE, SHRUNK_PRIOR, baselines
from pvae_pyro.evaluation.differences import difference_table
from pvae_pyro.screen import CONTROL

from ..run_arms import Rows

DRAWS = 400
WORLDS = ("linear-gaussian", "default")
MODEL, START = "model", "its closed-form start"
RULES = (SHRUNK_PRIOR, ADDITIVE)
METRICS = ("l2", "crps", "coverage_90")


def of_world(preset: str, settings: pv.FitSettings, seed: int) -> Rows:
    """Means over the pairs of every method, and L2 of every other one minus the model's with the ends of its 95 % interval."""
    made = pv.simulate.simulate(preset, seed)
    screen = pv.Screen.from_anndata(made.adata, "condition", batch_key="batch")
    split = pv.split_screen(screen, "singles")
    assert split.held_out is not None
    fit = pv.fit(pv.PerturbedVAE(), split.train, settings=settings, seed=seed, progress=False)
    truth = split.held_out.summary()
    rules = baselines(fit.training, truth.design, truth.n_cells, truth.targets)
    predictions = {MODEL: _predicted(fit, truth, seed), START: _predicted(fit.at_start(), truth, seed)}
    control = fit.training.index(CONTROL)
    reference = fit.training.mean[control], fit.training.variance[control], int(fit.training.n_cells[control])
    scores = pv.evaluate(truth, predictions | {name: rules[name] for name in RULES}, reference)
    rows: Rows = []
    for (method, metric), values in scores.rows.groupby(["method", "metric"], sort=False)["value"]:
        if metric in METRICS:
            rows.append((str(method), str(metric), float(values.mean())))
    for row in difference_table(scores, [START, *RULES], MODEL, ("l2",)).itertuples():
        rows += [(f"{row.method} - {MODEL}", f"l2{end}", float(v)) for end, v in
                 (("", row.difference), ("_low", row.low), ("_high", row.high))]  # fmt: skip
    return rows


def _predicted(fit: pv.Fit, truth: pv.ConditionSummary, seed: int) -> pv.Prediction:
    counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    draws = fit.predict(list(truth.conditions), draws=DRAWS, n_cells=counts, seed=seed).draws()
    return pv.Prediction(mean=draws.mean(axis=0, dtype=np.float64), draws=draws)


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, nothing else."""
    settings = pv.FitSettings(epochs=1) if smoke else pv.FitSettings()
    return {preset: partial(of_world, preset, settings) for preset in WORLDS}


def seeds_of(arm: str) -> range:
    return range(3)
