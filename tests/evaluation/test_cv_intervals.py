"""CV+ over pairs: it keeps its promise where the model's own widths do not, and is its definition on real fits."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.conformal import gene_scores, relative_error
from pvae_pyro.evaluation.cross_validation import CrossValidation, Fold, cross_validate
from pvae_pyro.evaluation.cv_intervals import CONFORMAL, CV_PLUS, RAW
from pvae_pyro.evaluation.distributions import COVERAGES
from pvae_pyro.inference import FitSettings
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import PerturbedVAE

pytestmark = pytest.mark.filterwarnings("error")

GENES, FOLDS, TARGETS = 12, 5, [f"T{i:02d}" for i in range(12)]
TOO_NARROW = 3.0


class Narrow:
    """A fit whose centre is the mean of the pairs it saw, and whose draws are three times too narrow."""

    def __init__(self, centre: np.ndarray, names: list[str], rng: np.random.Generator) -> None:
        self.centre, self.rng, self.genes, self.conditions = centre, rng, np.array([f"g{i}" for i in range(GENES)]), names
        design = np.array([[float(t in name.split("+")) for t in TARGETS] for name in names])
        self.training = SimpleNamespace(conditions=tuple(names), targets=tuple(TARGETS), design=design)

    def predict(self, names: list[str], *, draws: int, n_cells: Any, seed: int) -> Any:
        drawn = self.centre + self.rng.normal(size=(draws, len(names), GENES)) / TOO_NARROW
        return SimpleNamespace(genes=self.genes, draws=lambda: drawn, n_cells=np.full(len(names), 50))


def narrow_world(rng: np.random.Generator, pairs: int) -> tuple[CrossValidation, str, np.ndarray]:
    """Pairs around one profile with a size of error of their own, cross-validated, and one more pair with its value."""
    every = [f"{a}+{b}" for i, a in enumerate(TARGETS) for b in TARGETS[i + 1 :]]
    names = [str(one) for one in rng.choice(every, pairs + 1, replace=False)]
    values = 5 + rng.normal(size=(pairs + 1, GENES)) * rng.gamma(4.0, 0.25, size=(pairs + 1, 1))
    folds, rows = [], []
    for k in range(FOLDS):
        out = np.arange(pairs) % FOLDS == k
        centre = values[:pairs][~out].mean(axis=0)
        fit = Narrow(centre, TARGETS + [n for n, left in zip(names, out, strict=False) if not left], rng)
        held = [name for name, left in zip(names, out, strict=False) if left]
        mean, sd = np.tile(centre, (len(held), 1)), np.full((len(held), GENES), 1 / TOO_NARROW)
        folds.append(Fold(tuple(held), 1, 0.0, 0.0, fit.genes, mean, sd, values[:pairs][out], fit))
        for level, metric in zip((0.5, 0.8, 0.9, 0.95), COVERAGES, strict=True):
            z = {0.5: 0.674, 0.8: 1.282, 0.9: 1.645, 0.95: 1.96}[level]
            share = (np.abs(values[:pairs][out] - mean) <= z * sd).mean(axis=1)
            rows += [(k + 1, name, metric, s, 2, 2, "both seen") for name, s in zip(held, share, strict=True)]
    columns = ["fold", "condition", "metric", "value", "n_targets", "seen", "stratum"]
    return CrossValidation(pd.DataFrame(rows, columns=columns), tuple(folds)), names[pairs], values[pairs]


def test_widths_that_are_too_small_are_mended_by_cv_plus_and_only_by_it() -> None:
    rng = np.random.default_rng(0)
    repeats, level, found = 300, 0.9, {RAW: [], CV_PLUS: []}
    for _ in range(repeats):
        result, name, value = narrow_world(rng, 25)
        asked = result.intervals([name], level, draws=40)
        for method, (low, high) in ((RAW, asked.raw), (CV_PLUS, asked.cv_plus)):
            found[method].append(((low[0] <= value) & (value <= high[0])).mean())
    error = np.std(found[CV_PLUS]) / np.sqrt(repeats)
    covered = np.mean(found[CV_PLUS])
    assert covered > 1 - 2 * (1 - level), "the theorem"
    # at most 1 / 26 above the level because of the pair at infinity, and thinned genes stand for smaller ones
    assert level - 3 * error < covered < level + 1 / 26 + 0.01 + 3 * error
    assert np.mean(found[RAW]) < 0.55


def test_coverage_of_what_folds_held_out_has_a_raw_and_a_conformal_row() -> None:
    result, _, _ = narrow_world(np.random.default_rng(1), 50)
    table = result.coverage(resamples=500)
    raw = table[table["method"] == RAW].set_index("level")
    for level, metric in zip((0.5, 0.8, 0.9, 0.95), COVERAGES, strict=True):
        assert raw.loc[level, "coverage"] == pytest.approx(result.rows[result.rows["metric"] == metric]["value"].mean())
        assert raw.loc[level, "low"] < raw.loc[level, "coverage"] < raw.loc[level, "high"]
    assert raw.loc[0.9, "coverage"] < 0.55
    widened = table[table["method"] == CONFORMAL].set_index("level")
    assert widened.index.tolist() == [0.5, 0.8, 0.9, 0.95] and (widened["conditions"] == 50).all()
    # a share over 50 pairs whose sizes differ by a factor of two has a standard error of about 0.02
    assert widened.loc[0.9, "coverage"] == pytest.approx(0.9, abs=0.05)
    assert 2 < widened.loc[0.9, "factor"] / 1.645 < 4
    few = narrow_world(np.random.default_rng(2), 12)[0].coverage(resamples=50)
    assert few[few["method"] == CONFORMAL]["level"].tolist() == [0.5, 0.8, 0.9], "11 others do not allow 0.95"


def test_too_few_pairs_have_infinite_ends_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    result, name, _ = narrow_world(np.random.default_rng(3), 8)
    asked = result.intervals([name], 0.9, draws=40)
    assert np.isinf(asked.cv_plus).all() and np.isfinite(asked.raw).all()
    assert "8 held-out pairs are too few for CV+ at 0.9" in caplog.text
    assert np.isfinite(result.intervals([name], 0.8, draws=40).cv_plus).all()


def test_gene_scores_stand_for_equal_shares_and_never_below() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=(3, 103))
    ratio = np.sort(relative_error(np.zeros_like(y), np.ones_like(y), y), axis=1)
    thinned = gene_scores(np.zeros_like(y), np.ones_like(y), y, 10)
    np.testing.assert_array_equal(thinned, ratio[:, [10, 20, 30, 41, 51, 61, 72, 82, 92, 102]])
    np.testing.assert_array_equal(gene_scores(np.zeros_like(y), np.ones_like(y), y, 200), ratio)


@pytest.fixture(scope="module")
def done() -> CrossValidation:
    adata = simulate(
        "default", seed=2, targets=5, doubles=6, controls=120, cells_per_condition=25, genes=30, responsive=3, background=2
    ).adata
    return cross_validate(
        PerturbedVAE(background=2, hidden=0), Screen.from_anndata(adata, "condition"), 2,
        settings=FitSettings(epochs=1, batch_size=128), draws=20, device="cpu", progress=False, keep_fits=True,
    )  # fmt: skip


def absent(done: CrossValidation) -> list[str]:
    had = {name for fold in done.folds for name in fold.held_out}
    targets = done.folds[0].fit.targets
    return [f"{a}+{b}" for i, a in enumerate(targets) for b in targets[i + 1 :] if f"{a}+{b}" not in had]


def test_intervals_of_real_fits_are_their_definition(done: CrossValidation) -> None:
    names, level = absent(done)[:2], 0.5
    turned = ["+".join(name.split("+")[::-1]) for name in names]
    asked = done.intervals(turned, level, draws=30, n_cells=40, seed=1)
    assert asked.conditions == tuple(names) and asked.n_cells.tolist() == [40, 40] and asked.pairs.tolist() == [6, 6]
    drawn = [fold.fit.predict(names, draws=30, n_cells=40, seed=1 + k).draws() for k, fold in enumerate(done.folds)]
    pooled = np.concatenate(drawn).astype(float)
    np.testing.assert_allclose(asked.raw, np.quantile(pooled, [0.25, 0.75], axis=0), rtol=1e-6, atol=1e-7)
    measured = np.concatenate([fold.measured for fold in done.folds])
    counted, ends = (measured != 0).any(axis=0), ([], [])
    for fold, draws in zip(done.folds, drawn, strict=True):
        mean, sd = draws.mean(axis=0, dtype=float)[0], draws.std(axis=0, ddof=1, dtype=float)[0]
        ratios = relative_error(fold.mean, fold.sd, fold.measured)[:, counted].ravel()
        for side, sign in ((0, -1), (1, 1)):
            ends[side].append(mean[None] + sign * ratios[:, None] * sd[None])
    below, above = (np.sort(np.concatenate(one), axis=0) for one in ends)
    place = int(np.ceil(level * 7 * counted.sum())) - 1  # of 6 pairs with all their genes each, and one at infinity
    np.testing.assert_allclose(asked.cv_plus[1, 0], above[place], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(asked.cv_plus[0, 0], below[::-1][place], rtol=1e-6, atol=1e-7)
    table = asked.table()
    assert table["method"].unique().tolist() == [RAW, CV_PLUS] and len(table) == 2 * 2 * 30
    one = table[(table["method"] == CV_PLUS) & (table["condition"] == names[1])]
    np.testing.assert_array_equal(one["high"], asked.cv_plus[1, 1])


def test_what_the_folds_cannot_say_is_refused(done: CrossValidation) -> None:
    had, new = done.folds[0].held_out[0], absent(done)[0]
    for conditions, how, message in [
        ([had], {}, "took part in the cross-validation"),
        (["T01"], {}, "no combination"),
        ([new], {"level": 90}, "between 0 and 1"),
        ([new], {"draws": 5}, "5 draws are too few"),
        (["+".join(done.folds[0].fit.targets[:3])], {}, "stratum 'all seen'"),
        ([f"{new}9"], {}, "unknown|not"),
        ([], {}, "no combination was asked for"),
    ]:
        with pytest.raises(InputError, match=message):
            done.intervals(conditions, **how)
    bare = dataclasses.replace(done, folds=tuple(dataclasses.replace(fold, fit=None) for fold in done.folds))
    with pytest.raises(InputError, match="keep_fits=True"):
        bare.intervals([new])
    assert bare.coverage(resamples=20)["method"].iloc[0] == RAW
