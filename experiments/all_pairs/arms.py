"""Time and memory of predicting every pair of a large screen, reduced in a stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pvae_pyro as pv

from ..run_arms import Rows

TARGETS, GENES, DRAWS = 105, 5000, 500
PAIRS = TARGETS * (TARGETS - 1) // 2


def predicted(pairs: int, genes: int, draws: int, seed: int) -> Rows:
    """Fit (no epoch), then summaries of the first `pairs` pairs as the command line makes them; memory: the peak above what is
    held after the fit."""
    size = {"targets": TARGETS, "doubles": 0, "genes": genes, "controls": 1000, "cells_per_condition": 50}
    cells = pv.simulate.simulate("default", seed=seed, **size)
    screen = pv.Screen.from_anndata(cells.adata, "condition", batch_key="batch")
    fit = pv.fit(pv.PerturbedVAE(), screen, settings=pv.FitSettings(epochs=0), progress=False)
    before = _forget_peak()
    begun = time.perf_counter()
    names = ["+".join(pair) for pair in itertools.combinations(fit.targets, 2)][:pairs]
    posterior = fit.predict(names, draws=draws, seed=seed)
    drawn = time.perf_counter()
    posterior.summaries(("measured_pseudobulk", "latent_mean"), quantiles_of=("measured_pseudobulk",))
    done = time.perf_counter()
    each = (done - drawn) / len(names)
    rows = [("draws_seconds", drawn - begun), ("seconds_a_pair", each),
            ("minutes_for_all_pairs", (drawn - begun + each * PAIRS) / 60), ("gib_above_fit", _memory("VmHWM") - before),
            ("gib_of_output_for_all_pairs", 8 * 4 * PAIRS * genes / 2**30)]  # fmt: skip
    return [(f"{len(names)} of {PAIRS} pairs, {genes} genes, {draws} draws", metric, value) for metric, value in rows]


def _forget_peak() -> float:
    """GiB in use now; what was used at most is counted anew from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> float:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) / 2**20


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """`sample` extrapolates from 120 pairs, `all` predicts every one."""
    if smoke:
        return {"sample": partial(predicted, 4, 100, 20)}
    return {"sample": partial(predicted, 120, GENES, DRAWS), "all": partial(predicted, PAIRS, GENES, DRAWS)}
