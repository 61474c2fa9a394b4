"""The arms: how honest intervals are, where their width comes from, and screens whose pairs combine otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import pvae_pyro as pv
from pvae_pyro.evaluation.calibration import Intervals, terciles
from pvae_pyro.evaluation.distributions import marginal_scores
from pvae_pyro.evaluation.effects import single_effects
from pvae_pyro.evaluation.metrics import LEVELS

from ..run_arms import Rows
from ..swap.arms import DRAWS, _norman, _pairs

OFF = pv.Interaction(width=0.0, width_spread=0.0, stretch=0.0, outside=0.0, surprise_spread=0.0)
WIDTHS: dict[str, dict[str, Any]] = {
    "default": {},
    "no interaction draw": {"interaction": OFF},
    "without width of latents": {"interaction": pv.Interaction(width=0.0, width_spread=0.0)},
    "without stretch": {"interaction": pv.Interaction(stretch=0.0)},
    "without residual": {"interaction": pv.Interaction(outside=0.0)},
    "without surprise": {"interaction": pv.Interaction(surprise_spread=0.0)},
    "decoder uncertainty": {"loadings": pv.UncertainLoadings()},
    "decoder uncertainty, without residual": {"loadings": pv.UncertainLoadings(), "interaction": pv.Interaction(outside=0.0)},
}
GUIDES: dict[str, Any] = {
    "low-rank guide": pv.LowRank(),
    "ensemble of three": pv.Ensemble(n=3),
    "ensemble of three, cells resampled": pv.Ensemble(n=3, resample=True),
}


def scored(fit: pv.Fit, truth: pv.ConditionSummary, seed: int, fitted_on: pv.ConditionSummary | None = None) -> Rows:
    """Coverage overall and by terciles of what the singles did, CRPS, width; `fitted_on`: pairs that a table of gene widths is
    fitted on, for a Normal around the same means (its widths see the outcome of pairs, ours do not)."""
    prediction = _predicted(fit, truth, seed)
    rows = [("model", *one) for one in _scores(prediction, truth, fit)]
    if fitted_on is not None:
        other = _predicted(fit, fitted_on, seed)
        sd = np.sqrt(((fitted_on.mean - other.mean) ** 2).mean(0))
        table = pv.Prediction(mean=prediction.mean, sd=np.broadcast_to(sd, truth.mean.shape).copy())
        rows += [("Normal, gene widths of even doubles", *one) for one in _scores(table, truth, fit)]
    return rows


def _predicted(fit: pv.Fit, truth: pv.ConditionSummary, seed: int) -> pv.Prediction:
    counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    draws = fit.predict(list(truth.conditions), draws=DRAWS, n_cells=counts, seed=seed).draws()
    return pv.Prediction(mean=draws.mean(0, dtype=np.float64), draws=draws)


def _scores(prediction: pv.Prediction, truth: pv.ConditionSummary, fit: pv.Fit) -> list[tuple[str, float]]:
    control = fit.training.mean[fit.training.index("control")]
    counted = (control != 0) | (truth.mean != 0).any(0)
    intervals = Intervals.of(prediction, truth.mean, counted)
    inside = intervals.inside[:, :, counted].mean(-1)  # (levels, conditions)
    rows = [(f"coverage_{round(100 * level)}", float(inside[i].mean())) for i, level in enumerate(LEVELS)]
    effects = single_effects(fit.training)
    size = dict(zip(fit.targets, np.linalg.norm(effects.shift, axis=1), strict=True))
    groups = terciles([sum(size[t] for t in c.split("+")) for c in truth.conditions])
    at = LEVELS.index(0.9)
    rows += [(f"coverage_90, {g} effects", float(inside[at][groups == g].mean())) for g in ("low", "middle", "high")]
    crps = marginal_scores(prediction, np.arange(len(truth.conditions)), truth.mean, counted)["crps"]
    l2 = np.linalg.norm(prediction.mean - truth.mean, axis=1)
    width = float(intervals.width[at][:, counted].mean())
    return [*rows, ("crps", float(np.mean(crps))), ("l2_all_genes", float(l2.mean())), ("width_90", width)]


def norman(regime: str, model: pv.PerturbedVAE, guide: Any, epochs: int | None, seed: int) -> Rows:
    """Semi-synthetic Norman: controls and singles (and even doubles) trained, odd doubles scored."""
    screen = _norman()
    even, odd = _pairs(screen, "even"), _pairs(screen, "odd")
    split = pv.split_screen(screen, "singles") if regime == "singles" else pv.split_screen(screen, "all", odd)
    settings = pv.FitSettings() if epochs is None else pv.FitSettings(epochs=epochs)
    fit = pv.fit(model, split.train, guide=guide, settings=settings, seed=seed, progress=False)
    assert split.held_out is not None
    pairs = split.held_out.summary()
    return scored(fit, pairs.restrict(odd), seed, pairs.restrict(even) if regime == "singles" else None)


def simulated(preset: str, half: bool, epochs: int | None, seed: int) -> Rows:
    """A screen whose pairs combine otherwise: singles trained, or every other pair, too; the other half of pairs scored."""
    screen = pv.Screen.from_anndata(pv.simulate.simulate(preset, seed=seed).adata, "condition", batch_key="batch")
    pairs = [c for c in screen.conditions if "+" in c]
    trained, held = pairs[::2], pairs[1::2]
    split = pv.split_screen(screen, "all", held if half else held + trained)
    settings = pv.FitSettings() if epochs is None else pv.FitSettings(epochs=epochs)
    model = pv.PerturbedVAE(likelihood=pv.Gaussian(link="identity"))
    fit = pv.fit(model, split.train, settings=settings, seed=seed, progress=False)
    assert split.held_out is not None
    rows = scored(fit, split.held_out.restrict(held).summary(), seed)
    told = next(one for one in fit.diagnose() if one.topic == "combinations")
    return [*rows, ("diagnosis warns of combinations", "share", float(told.level != "fine"))]


def cv_plus(seed: int) -> Rows:
    """Semi-synthetic Norman: five folds of the even doubles from the closed-form start, asked for the odd ones."""
    screen = _norman()
    split = pv.split_screen(screen, "all", _pairs(screen, "odd"))
    assert split.held_out is not None
    start = pv.FitSettings(epochs=0)
    folds = pv.cross_validate(pv.PerturbedVAE(), split.train, 5, settings=start, seed=seed, progress=False, keep_fits=True)
    truth = split.held_out.summary()
    counted, counts = (truth.mean != 0).any(0), dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    rows: Rows = []
    for level in LEVELS:
        found = folds.intervals(truth.conditions, level, n_cells=counts, seed=seed)
        for name, (low, high) in (("raw", found.raw), ("CV+ over pairs", found.cv_plus)):
            inside = ((low <= truth.mean) & (truth.mean <= high))[:, counted].mean(1)
            part = f"{round(100 * level)}"
            rows += [(name, f"coverage_{part}", float(inside.mean())), (name, f"width_{part}", float((high - low).mean()))]
            rows.append((name, f"coverage_{part}_se", float(inside.std() / len(inside) ** 0.5)))
    return rows


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, nothing else."""
    epochs = 1 if smoke else None
    model = pv.PerturbedVAE()
    out: dict[str, Callable[[int], Rows]] = {r: partial(norman, r, model, None, epochs) for r in ("singles", "doubles")}
    for preset in ("averaging", "synergy"):
        out[f"{preset}, singles"] = partial(simulated, preset, False, epochs)
        out[f"{preset}, half of pairs"] = partial(simulated, preset, True, epochs)
    for regime in ("singles", "doubles"):
        for name, parts in WIDTHS.items():
            out[f"{regime}, start: {name}"] = partial(norman, regime, model.replace(**parts), None, 0)
        sampled = model.replace(**WIDTHS["decoder uncertainty"])
        out[f"{regime}: decoder uncertainty"] = partial(norman, regime, sampled, None, epochs)
    for name, guide in GUIDES.items():
        out[f"singles: {name}"] = partial(norman, "singles", model, guide, epochs)
    return out | {"CV+ over pairs": cv_plus}


def seeds_of(arm: str) -> tuple[int, ...]:
    """Three seeds of what is claimed, five worlds (ten where half of the pairs are trained), one of each ablation."""
    if arm in ("singles", "doubles"):
        return (0, 1, 2)
    return (0,) if ":" in arm or arm.startswith("CV+") else tuple(range(10 if arm.endswith("half of pairs") else 5))
