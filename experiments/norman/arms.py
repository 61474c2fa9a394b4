"""The arms: rules and oracles of a file, or one fit of it; and the arithmetic of the metric on cells whose law is known."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

import pvae_pyro as pv
from pvae_pyro.config import from_dict
from pvae_pyro.datasets import norman2019
from pvae_pyro.evaluation.baselines import NO_CHANGE, baselines
from pvae_pyro.evaluation.cells import energy_distance
from pvae_pyro.evaluation.legacy import rmse_cell_rel

from ..run_arms import Arms, Rows
from .protocol import BATCH, CONFIG, HELD_OUT, prepare
from .published import TABLE_14, floor_squared
from .scoring import Array, Cells, Method, averaged, floor_formula, scored, shifted

DATA = Path(os.environ.get("PVAE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
USER = "full"  # arms of a file given by --data
MODEL, MODEL_CELLS, START = "model, mean", "model, new cells", "model, warm start, mean"
MEASURED, PERFECT = "oracle: measured mean", "oracle: other cells of the condition"
CONTROL_CELLS = "no change, control cells"


@cache
def _cells(path: Path, key: str | None) -> Cells:
    return Cells(prepare(norman2019(path, key=key)))


def rules(path: Path, key: str | None, seed: int) -> Rows:
    """Every rule as a mean predictor; control cells, and two oracles that look at the answer; what the checks found."""
    data = _cells(path, key)
    truth, training = data.truth, data.training
    methods = {n: Method(p) for n, p in baselines(training, truth.design, truth.n_cells, truth.targets).items()}
    measured = pv.Prediction(truth.mean)
    control = data.task.train.expression[data.task.train.condition == training.index("control")]
    random = np.random.default_rng(seed)

    def controls(_: str, n: int) -> Array:
        return np.asarray(control[random.integers(control.shape[0], size=n)].toarray(), float)

    methods[CONTROL_CELLS] = Method(methods[NO_CHANGE].prediction, controls)
    methods[MEASURED] = Method(measured)
    methods[PERFECT] = Method(measured, lambda name, n: shifted(data.measured(truth.index(name))))
    rows = averaged(scored(data, methods, floors=True), data.task.sets)
    found = [("file", what.replace(" ", "_"), float(value)) for what, value, _ in data.task.checks]
    return rows + floor_formula(data) + found


def fitted(path: Path, key: str | None, story: dict[str, object], smoke: bool, seed: int) -> Rows:
    """Fit on controls and singles; the mean, repeated, and new cells; the closed-form start of the same fit."""
    data = _cells(path, key)
    fit_settings: dict[str, object] = {"epochs": 1} if smoke else {}
    config = from_dict({"story": story, "fit": fit_settings}, origin="experiments/norman/config.toml")
    fit = pv.fit(config.model, data.task.train, guide=config.guide, settings=config.settings, seed=seed, progress=False,
                 known_targets=data.truth.targets)  # fmt: skip
    names = list(data.truth.conditions)
    counts = dict(zip(names, data.truth.n_cells.tolist(), strict=True))
    tables = []
    for name, one in {MODEL: fit, START: fit.at_start()}.items():  # one at a time: draws of a full screen take a gigabyte
        posterior = one.predict(names, draws=50 if smoke else CONFIG["scores"]["draws"], n_cells=counts, seed=seed)
        draws = posterior.draws()
        prediction = pv.Prediction(draws.mean(axis=0, dtype=np.float64), draws=draws)
        methods = {name: Method(prediction)}
        if name == MODEL:
            methods[MODEL_CELLS] = Method(prediction, partial(_new, posterior, seed))
        tables.append(scored(data, methods))
        del posterior, draws, prediction, methods
    return averaged(pd.concat(tables, ignore_index=True), data.task.sets)


def _new(posterior: pv.Posterior, seed: int, name: str, n: int) -> Array:
    return np.asarray(posterior.new_cells(name, n, seed), float)


def arithmetic(seed: int) -> Rows:
    """Synthetic counts of one known law: a perfect sampler against constants, and the floor that Table 14 implies.

    40 conditions of 96 cells, 200 genes, counts Poisson around gamma-distributed rates, log1p; what is predicted is the
    law itself, its mean, a wrong mean (that of another condition), or cells whose spread is a tenth of the true one.
    """
    random = np.random.default_rng(seed)
    level = random.gamma(0.6, 2.0, size=(40, 200)) * np.exp(0.3 * random.standard_normal(200))

    def drawn(rates: Array, n: int) -> Array:
        return np.log1p(random.poisson(rates * random.gamma(4.0, 0.25, size=(n, len(rates)))))

    large = [drawn(rates, 2000) for rates in level]
    means = [cells.mean(axis=0) for cells in large]
    values: dict[str, list[tuple[float, float]]] = {}
    shares = []
    for i, rates in enumerate(level):
        real = drawn(rates, 96)
        perfect = drawn(rates, 96)
        guesses = {
            "synthetic: perfect sampler": perfect,
            "synthetic: its mean, collapsed": np.tile(means[i], (96, 1)),
            "synthetic: a tenth of the spread": means[i] + 0.1 * (perfect - means[i]),
            "synthetic: mean 10 % too large": np.tile(1.1 * means[i], (96, 1)),
        }
        for name, guess in guesses.items():
            batches = [rmse_cell_rel(guess[b : b + BATCH], real[b : b + BATCH]) for b in range(0, 96, BATCH)]
            values.setdefault(name, []).append((float(np.mean(batches)), energy_distance(real, guess)))
        w, m2 = large[i].var(axis=0).mean(), (means[i] ** 2).mean()
        shares.append(w / (w + m2))
    rows: Rows = []
    for name, pairs in values.items():
        rmse, distance = np.mean(pairs, axis=0)
        rows += [(name, "rmse_cell_rel", float(rmse)), (name, "energy_distance", float(distance))]
    f = np.array(shares)
    rows += [("synthetic: formula", "floor", float(np.sqrt(f).mean())),
             ("synthetic: formula", "perfect_sampler", float(np.sqrt(2 * f).mean()))]  # fmt: skip
    for method, table in TABLE_14.items():
        rows.append((f"published: {method}", "f", floor_squared(table["rmse_cell_rel"], table["rmse_pb_rel"])))
        rows.append((f"published: {method}", "floor", rows[-1][2] ** 0.5))
    f0, bias = rows[-2][2], TABLE_14["PerturbedVAE"]["rmse_pb_rel"]
    rows.append(("published: PerturbedVAE, as a sampler", "rmse_cell_rel", float(np.sqrt(2 * f0 + bias**2 * (1 - f0)))))
    return rows


def _written(folder: Path) -> Path:
    """A simulated screen in the layout of the protocol's file, its first targets under the names that are held out."""
    cells = pv.simulate.simulate(seed=0, doubles=12, controls=400, genes=120, cells_per_condition=120).adata
    targets = sorted({t for c in cells.obs["condition"].unique() for t in c.split("+")} - {"control"})
    named = {t: HELD_OUT[i] if i < len(HELD_OUT) else t for i, t in enumerate(targets)}
    labels = [",".join(named[t] for t in c.split("+") if t != "control") for c in cells.obs["condition"]]
    cells.obs = cells.obs.assign(guide_ids=labels, gemgroup=cells.obs["batch"])[["guide_ids", "gemgroup"]]
    path = folder / "simulated.h5ad"
    cells.write_h5ad(path)
    return path


def simulated(smoke: bool, seed: int) -> Rows:
    """The whole protocol on a simulated screen, read from a file: that the code is whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = _written(Path(folder))
        return rules(path, None, seed) + fitted(path, None, {}, smoke, seed)


def arms(smoke: bool = False, data: Path | None = None, key: str | None = None) -> Arms:
    """Every arm by name; with a file of the user's, those of that file. `smoke` shortens training, nothing else."""
    files = {name: (DATA / file, None) for name, file in CONFIG["data"].items()} if data is None else {USER: (data, key)}
    out: dict[str, Callable[[int], Rows]] = {}
    if data is None:
        out["arithmetic"] = arithmetic
        if smoke:  # no claim rests on it
            out["simulated"] = partial(simulated, smoke)
    for name, where in files.items():
        out[f"{name} rules"] = partial(rules, *where)
        for model, settings in CONFIG["models"].items():
            if name != "real-subset" or model == "default":  # 18 singles carry no comparison of settings
                out[f"{name} {model}"] = partial(fitted, *where, settings.get("story", {}), smoke)
    return out


def seeds_of(arm: str) -> Sequence[int]:
    """Seeds that an arm is run with."""
    return tuple(CONFIG["models"].get(arm.split(" ")[-1], {"seeds": [0]})["seeds"])
