"""The arms, `regime rival`: closed forms tune themselves; by `tune ...` arms the settings of the VAE family are chosen.

Regimes: `singles` (semi-synthetic Norman, controls and singles trained), `doubles` (even doubles trained, too), `real singles`
and `real doubles` (the same with the real pseudobulk). All are scored on the odd doubles, and tuned by L2 on the even ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

import pvae_pyro as pv

from ..run_arms import Rows
from .closed import CLOSED, Closed, Settings
from .family import FAMILY, OURS, candidates, choice
from .scoring import MEAN, errors, scored, widened
from .screens import Bench, real_pseudobulk, semi_synthetic, simulated

DRAWS = 400
SMOKE = "smoke"
BENCHES: dict[str, Callable[[], Bench]] = {"": semi_synthetic, "real ": real_pseudobulk}
REGIMES = ("singles", "doubles")


def out_of_fold(bench: Bench, regime: str, closed: Closed, settings: Settings) -> np.ndarray:
    """Errors (N, G) on the even pairs from means of singles, or of singles and the other four fifths of the pairs."""
    folds = [list(bench.even)] if regime == "singles" else bench.folds()
    left = {}
    for held in folds:
        known = bench.known([] if regime == "singles" else [c for c in bench.even if c not in held])
        mean = closed.rule(known, bench.asked(known, held), settings)
        left |= dict(zip(held, errors(bench, mean, tuple(held)), strict=True))
    return np.stack([left[c] for c in bench.even])


def closed_form(bench: Callable[[], Bench], regime: str, name: str, seed: int) -> Rows:
    """Tuned on the even pairs, widths from the same errors, scored on the odd ones."""
    b, closed = bench(), CLOSED[name]
    tried = [out_of_fold(b, regime, closed, settings) for settings in closed.grid]
    l2 = [float(np.linalg.norm(left, axis=1).mean()) for left in tried]
    best = int(np.argmin(l2))
    known = b.known(b.even if regime == "doubles" else [])
    mean = closed.rule(known, b.asked(known, b.odd), closed.grid[best])
    rows: Rows = [(f"tuning: {_told(s)}", "l2", value) for s, value in zip(closed.grid, l2, strict=True) if s]
    rows += [(f"chosen: {_told(closed.grid[best])}", "l2", l2[best])] if closed.grid[best] else []
    return rows + scored(b, widened(b, mean, b.odd, tried[best], b.even), b.odd)


def tuning(bench: Callable[[], Bench], name: str, number: int, epochs: int | None, seed: int) -> Rows:
    """One setting of one of the VAE family on the even pairs, singles trained."""
    b = bench()
    fit = _fitted(candidates(b, name)[number], b, [], epochs, seed)
    return scored(b, _predicted(fit, b, b.even, seed), b.even, each=False)


def family(bench: Callable[[], Bench], regime: str, name: str, epochs: int | None, seed: int) -> Rows:
    """The chosen setting on the odd pairs: its draws, and with singles trained also its mean in the widths of closed forms."""
    b = bench()
    preset = candidates(b, name)[choice(name)]
    if bench is real_pseudobulk:
        preset = replace(preset, model=preset.model.replace(likelihood=pv.Gaussian(link="identity")))
    fit = _fitted(preset, b, b.even if regime == "doubles" else (), epochs, seed)
    drawn = _predicted(fit, b, b.odd, seed)
    rows = scored(b, drawn, b.odd)
    if regime == "singles":
        left = errors(b, _predicted(fit, b, b.even, seed).mean, b.even)
        rows += scored(b, widened(b, drawn.mean, b.odd, left, b.even), b.odd, ", fitted widths", each=False)
    return rows


def _fitted(preset: pv.presets.Preset, bench: Bench, pairs: list[str] | tuple[str, ...], epochs: int | None, seed: int) -> pv.Fit:
    settings = preset.settings if epochs is None else replace(preset.settings, epochs=epochs)
    return replace(preset, settings=settings).fit(bench.train(pairs), seed=seed, progress=False)


def _predicted(fit: pv.Fit, bench: Bench, pairs: tuple[str, ...], seed: int) -> pv.Prediction:
    truth = bench.summary.restrict(pairs)
    counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    draws = fit.predict(list(pairs), draws=DRAWS, n_cells=counts, seed=seed).draws()
    return pv.Prediction(mean=draws.mean(axis=0, dtype=np.float64), draws=draws)


def _told(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name, closed forms first; `smoke` shortens training, nothing else."""
    epochs = 1 if smoke else None
    out: dict[str, Callable[[int], Rows]] = {}
    for (prefix, bench), regime in ((item, r) for item in BENCHES.items() for r in REGIMES):
        for name, closed in CLOSED.items():
            if regime == "doubles" or not closed.needs_pairs:
                out[f"{prefix}{regime} {name}"] = partial(closed_form, bench, regime, name)
    for name, rival in FAMILY.items():
        for i, told in enumerate(rival.settings if len(rival.settings) > 1 else ()):
            out[f"tune {name}, {told}"] = partial(tuning, semi_synthetic, name, i, epochs)
    for regime in REGIMES:
        out |= {f"{regime} {name}": partial(family, semi_synthetic, regime, name, epochs) for name in FAMILY}
    out |= {f"real {regime} {OURS}": partial(family, real_pseudobulk, regime, OURS, epochs) for regime in REGIMES}
    return out | ({SMOKE: smoked} if smoke else {})


def smoked(seed: int) -> Rows:
    """One arm of each kind on simulated cells, which need no file."""
    parts = {
        "kernel ridge": partial(closed_form, simulated, "doubles", "kernel ridge"),
        "tuning sena": partial(tuning, simulated, "sena", 0, 1),
        "sams_vae": partial(family, simulated, "singles", "sams_vae", 1),
        OURS: partial(family, simulated, "doubles", OURS, 1),
    }
    rows = [(f"{name}: {what}", metric, value) for name, run in parts.items() for what, metric, value in run(seed)]
    return [row for row in rows if MEAN in row[0]]


def seeds_of(arm: str) -> tuple[int, ...]:
    """Three seeds of our default, one of everything else: two hours of fits would tell how far seeds of rivals lie apart."""
    return (0, 1, 2) if arm in {f"{regime} {OURS}" for regime in REGIMES} else (0,)
