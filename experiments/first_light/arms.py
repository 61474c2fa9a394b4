"""The arms of the experiment: what is fitted, and on which cells it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import pvae_pyro as pv
from pvae_pyro.evaluation.baselines import baselines, oracle_baselines
from pvae_pyro.evaluation.scores import parity
from pvae_pyro.screen import CONTROL

DATA = Path(os.environ.get("PVAE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
DRAWS = 400
METRICS = (
    "l2",
    "delta_pearson",
    "mse_ratio",
    "crps",
    "coverage_50",
    "coverage_80",
    "coverage_90",
    "coverage_95",
)
Rows = list[tuple[str, str, float]]  # (what is scored, metric, value)


def _score(
    truth: pv.ConditionSummary,
    fit: pv.Fit,
    predictions: dict[str, pv.Prediction],
    control_of: pv.ConditionSummary,
) -> Rows:
    i = control_of.index(CONTROL)
    control = (control_of.mean[i], control_of.variance[i], int(control_of.n_cells[i]))
    table = pv.evaluate(truth, predictions, control).rows
    rows: Rows = []
    for (method, metric), values in table.groupby(["method", "metric"], sort=False)["value"]:
        if metric in METRICS:
            rows.append((str(method), str(metric), float(values.mean())))
    return rows


def _predicted(fit: pv.Fit, truth: pv.ConditionSummary, seed: int) -> pv.Prediction:
    counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    draws = fit.predict(list(truth.conditions), draws=DRAWS, n_cells=counts, seed=seed).draws()
    return pv.Prediction(mean=draws.mean(axis=0, dtype=np.float64), draws=draws)


def _norman(
    model: pv.PerturbedVAE, settings: pv.FitSettings, seed: int, *, start: bool = False, others: bool = False
) -> Rows:
    """Fit on controls and singles; read on the odd (report) and the even (tuning) doubles."""
    screen = pv.Screen.from_anndata(DATA / "norman_semisynthetic.h5ad", "guide_ids", batch_key="gemgroup")
    split = pv.split_screen(screen, "singles")
    assert split.held_out is not None
    fit = pv.fit(model, split.train, settings=settings, seed=seed)
    rows: Rows = []
    for name in ("odd", "even"):
        held = split.held_out.restrict([c for c in split.held_out.conditions if parity(c) == name])
        truth = held.summary()
        fits = {"model": fit} | ({"model, warm start": fit.at_start()} if start else {})
        predictions = {k: _predicted(f, truth, seed) for k, f in fits.items()}
        if others:
            predictions |= baselines(
                fit.training, truth.design, truth.n_cells, truth.targets
            ) | oracle_baselines(fit.training, truth)
        rows += [
            (f"{what} [{name}]", metric, value)
            for what, metric, value in _score(truth, fit, predictions, fit.training)
        ]
    history = fit.history
    rows += [
        ("fit", name, float(history[name][-1]))
        for name in ("loss", "held_out_loss", "leakage_background", "leakage_responsive")
    ]
    return rows


def _papalexi(model: pv.PerturbedVAE, seed: int) -> Rows:
    """Real cells: 20 % of every condition held out; is the prediction nearer to them than the training cells' own mean?"""
    screen = pv.Screen.from_anndata(DATA / "papalexi_cells.h5ad", "target", batch_key="replicate")
    generator = np.random.default_rng(seed)
    held = np.zeros(screen.n_cells, dtype=bool)
    for i in range(len(screen.conditions)):
        members = np.flatnonzero(screen.condition == i)
        held[generator.choice(members, len(members) // 5, replace=False)] = True
    train, test = screen.cells(np.flatnonzero(~held)), screen.cells(np.flatnonzero(held))
    fit = pv.fit(model, train, seed=seed)
    truth = test.summary().restrict([c for c in test.conditions if c != CONTROL])
    rows: Rows = []
    own = np.stack([fit.training.mean[fit.training.index(c)] for c in truth.conditions])
    reference = np.linalg.norm(own - truth.mean, axis=1)
    predictions = {
        "model": _predicted(fit, truth, seed),
        "model, warm start": _predicted(fit.at_start(), truth, seed),
    }
    for name, p in predictions.items():
        rows.append(
            (
                name,
                "l2_ratio_to_own_mean",
                float((np.linalg.norm(p.mean - truth.mean, axis=1) / reference).mean()),
            )
        )
    predictions["training cells' own mean"] = pv.Prediction(mean=own)
    return rows + _score(truth, fit, predictions, fit.training)


def _norman_cells(model: pv.PerturbedVAE, seed: int) -> Rows:
    """Real cells, very sparse: the five pairs whose singles were both measured."""
    screen = pv.Screen.from_anndata(DATA / "norman_cells.h5ad", "condition")
    split = pv.split_screen(screen, "singles")
    assert split.held_out is not None
    fit = pv.fit(model, split.train, seed=seed)
    pairs = [c for c in split.held_out.conditions if set(c.split("+")) <= set(fit.targets)]
    truth = split.held_out.restrict(pairs).summary()
    predictions = {"model": _predicted(fit, truth, seed)} | baselines(
        fit.training, truth.design, truth.n_cells, truth.targets
    )
    return _score(truth, fit, predictions, fit.training)


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, nothing else."""
    settings = pv.FitSettings(epochs=1) if smoke else pv.FitSettings()
    start = pv.FitSettings(epochs=0)
    model, counts = pv.PerturbedVAE(), pv.PerturbedVAE(likelihood=pv.NegativeBinomial())
    out: dict[str, Callable[[int], Rows]] = {
        "default": lambda seed: _norman(model, settings, seed, start=True, others=True),
        "epochs-x5": lambda seed: _norman(model, replace(settings, epochs=5 * settings.epochs), seed),
        "negative-binomial": lambda seed: _norman(counts, settings, seed, start=True),
        "papalexi-gaussian": lambda seed: _papalexi(model, seed),
        "papalexi-negative-binomial": lambda seed: _papalexi(counts, seed),
        "norman-cells-gaussian": lambda seed: _norman_cells(model, seed),
        "norman-cells-negative-binomial": lambda seed: _norman_cells(counts, seed),
        "additive-composition": lambda seed: _norman(model.replace(composition=pv.Additive()), start, seed),
        "additive-0.85-composition": lambda seed: _norman(
            model.replace(composition=pv.Additive(scale=0.85)), start, seed
        ),
    }
    for factor, word in ((0.5, "half"), (2.0, "double")):
        capacity = pv.Bilinear(capacity=pv.Bilinear().capacity * factor)
        width = pv.Interaction(width=pv.Interaction().width * factor)
        out[f"capacity-{word}"] = lambda seed, c=capacity: _norman(model.replace(composition=c), start, seed)  # type: ignore[misc]
        out[f"width-{word}"] = lambda seed, w=width: _norman(model.replace(interaction=w), start, seed)  # type: ignore[misc]
    return out


def seeds_of(arm: str) -> tuple[int, ...]:
    """Three seeds of the default, one of everything else."""
    return (0, 1, 2) if arm == "default" else (0,)
