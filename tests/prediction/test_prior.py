"""Cells drawn from a prior: the program's own moments, the screen's own layout, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from pyro import poutine
from scipy import stats

import pvae_pyro as pv
from pvae_pyro.inference.warm_start import closed_form
from pvae_pyro.prediction import prior as room
from pvae_pyro.simulate import simulate as world
from pvae_pyro.story import PARTS, Story

SMALL = pv.ScreenPlan({"control": 8, "A": 5, "C@0.5": 4, "B+A": 3}, genes=12, batches=2)
EVERY_PART = [(kind, name) for kind, named in PARTS.items() for name in named]
LINEAR: dict[str, Any] = {"graph": pv.NoGraph(), "likelihood": pv.Gaussian(link="identity"), "composition": pv.Additive(),
                          "interaction": pv.Interaction(stretch=0.0)}  # fmt: skip


def tiny(**parts: Any) -> pv.PerturbedVAE:
    return pv.PerturbedVAE(responsive=3, background=2, hidden=0, **parts)


def read_back(adata: AnnData) -> pv.Screen:
    return pv.Screen.from_anndata(adata, "condition", batch_key="batch")


@pytest.fixture(scope="module")
def screen() -> pv.Screen:
    """Counts of eight targets and three pairs in two batches, one gene of which nobody has a count."""
    made = world("default", seed=2, targets=8, doubles=3, controls=90, cells_per_condition=15, genes=30, batches=2).adata
    made.X = made.X.multiply(np.arange(30) != 4).tocsr()
    return read_back(made)


@pytest.mark.parametrize("likelihood", ["gaussian", "negative-binomial"])
@pytest.mark.parametrize("start", [True, False])
def test_conditions_batches_and_libraries_are_those_of_the_screen(likelihood: str, start: bool, screen: pv.Screen) -> None:
    model = tiny(likelihood=PARTS["likelihood"][likelihood]())
    drawn = model.simulate(screen, seed=1, start=start)
    again = read_back(drawn.adata)
    assert (again.conditions, again.targets, again.batches) == (screen.conditions, screen.targets, screen.batches)
    assert again.scale == ("counts" if likelihood == "negative-binomial" else "normalised")
    for name in ("design", "condition", "batch", "genes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(screen, name))
    np.testing.assert_array_equal(drawn.adata.obs["library"], screen.library)
    silent = np.asarray(abs(again.expression).sum(0)).ravel() == 0
    assert silent[4] == start and silent.sum() == int(start)  # without a start nothing is known of any gene
    np.testing.assert_array_equal(drawn.active, ~silent)
    assert drawn.truth.shift.shape == (len(screen.conditions), 3) and drawn.truth.z_background.shape == (len(screen), 2)


def test_a_plan_is_laid_out_as_it_says() -> None:
    again = read_back(tiny(likelihood=pv.NegativeBinomial()).simulate(SMALL).adata)
    assert again.conditions == ("control", "A", "C@0.5", "A+B") and again.targets == ("A", "B", "C")
    np.testing.assert_array_equal(again.design, [[0, 0, 0], [1, 0, 0], [0, 0, 0.5], [1, 1, 0]])
    np.testing.assert_array_equal(again.condition_table()["n_cells"], [8, 5, 4, 3])
    np.testing.assert_array_equal(np.bincount(again.batch), [11, 9])  # every condition takes turns from the first on


def test_the_same_seed_repeats_and_another_differs(screen: pv.Screen) -> None:
    model = tiny()
    first, again, other = (model.simulate(screen, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.adata.X, again.adata.X)
    for name, value in first.truth.sites.items():
        np.testing.assert_array_equal(value, again.truth.sites[name])
        assert not np.array_equal(value, other.truth.sites[name]) or set(value.ravel()) <= {0.0, 1.0}  # few gates may agree
    assert not np.array_equal(first.adata.X, other.adata.X)
    np.testing.assert_array_equal(first.truth.loadings_responsive, other.truth.loadings_responsive)  # a start is not drawn
    planned = [model.simulate(SMALL, seed=seed).truth.loadings_responsive for seed in (3, 3, 4)]
    np.testing.assert_array_equal(planned[0], planned[1])
    assert not np.allclose(planned[0], planned[2])


def test_random_numbers_outside_do_not_matter_and_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = tiny().simulate(SMALL)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    np.testing.assert_array_equal(first.adata.X, tiny().simulate(SMALL).adata.X)


def test_gates_and_effects_follow_their_prior() -> None:
    """400 targets: shares of open gates are inclusion times activity, effects have variance pi a tau^2."""
    plan = pv.ScreenPlan({"control": 1} | {f"T{i:03d}": 1 for i in range(400)}, genes=20, effect=2.5)
    slab = pv.SpikeSlab(inclusion=0.3, strength=6.0, activity=0.6, activity_strength=3.0)
    model = pv.PerturbedVAE(responsive=10, background=2, hidden=0, effects=slab)
    drawn = [model.simulate(plan, seed=seed).truth for seed in range(6)]
    pi, tau = (np.stack([t.sites[name] for t in drawn]) for name in ("inclusion", "effect_scale"))  # (seeds, latents)
    assert stats.kstest(pi.ravel(), stats.beta(1.8, 4.2).cdf).pvalue > 0.001
    assert stats.kstest(tau.ravel(), stats.lognorm(s=0.05, scale=2.5).cdf).pvalue > 0.001
    w = np.stack([t.effects for t in drawn])  # (seeds, targets, latents)
    alpha, a = (np.stack([t.sites[name] for t in drawn]) for name in ("acting", "activity"))  # (seeds,), (seeds, targets, 1)
    uniform = np.stack([stats.beta(3 * x, 3 * (1 - x)).cdf(y) for x, y in zip(alpha, a, strict=True)])
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 0.001
    p = a * pi[:, None]  # (seeds, targets, latents)
    z = ((w != 0) - p).sum(1) / np.sqrt((p * (1 - p)).sum(1))
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.001
    # of one target E w^2 = p tau^2 and E w^4 = 3 p tau^4
    z = ((w / tau[:, None]) ** 2 - p).sum(1) / np.sqrt((3 * p - p**2).sum(1))
    assert abs(z.mean()) < 4 / np.sqrt(z.size) and 0.6 < z.std() < 1.5


def test_moments_of_cells_are_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear story: means are b + m_d W_r + r_d; control cells vary by |W_b + B W_r|^2 + |W_r|^2 + noise^2, gene by gene."""
    monkeypatch.setattr(room, "_BLOCK", 30_000)  # many blocks of cells, one truth
    plan = pv.ScreenPlan({"control": 30_000, "A": 8000, "A+B": 8000}, genes=15, loading=2.0, noise=0.3)
    drawn = tiny(**LINEAR).simulate(plan, seed=1)
    x, truth, code = drawn.adata.layers["drawn"].astype(float), drawn.truth, read_back(drawn.adata).condition
    w_r, noise, nu = truth.loadings_responsive, truth.sites["noise"], truth.sites["log_variance"]
    through = truth.loadings_background + truth.sites["coupling"] @ w_r
    for row, used in enumerate(([], [0], [0, 1])):
        mean = truth.intercept[0] + truth.shift[row] @ w_r + truth.residual[row]
        v = np.exp(np.clip(nu[used].sum(0), -2, 2))
        variance = (through**2).sum(0) + v @ w_r**2 + noise**2
        cells = x[code == row]
        z = (cells.mean(0) - mean) / np.sqrt(variance / len(cells))
        assert np.abs(z).max() < 4.5
        np.testing.assert_allclose(cells.var(0), variance, rtol=4.5 * np.sqrt(2 / len(cells)))
    np.testing.assert_allclose(w_r @ w_r.T, 4 * np.eye(3), atol=1e-5)  # orthogonal and of the stated length
    np.testing.assert_allclose(w_r @ truth.loadings_background.T, 0, atol=1e-5)
    np.testing.assert_allclose(truth.intercept, np.log1p(1e4 / 15), rtol=1e-5)
    np.testing.assert_allclose(truth.shift[2], truth.effects.sum(0) + truth.sites["interaction"][0], rtol=1e-5)
    assert drawn.below_zero == (x < 0).mean()
    np.testing.assert_array_equal(drawn.adata.X, np.maximum(drawn.adata.layers["drawn"], 0))


def test_counts_have_the_libraries_that_were_asked_for() -> None:
    """Genes share 10,000 evenly and nothing moves them: library size in, library size out (and Poisson around it)."""
    plan = pv.ScreenPlan({"control": 4000, "A": 10}, genes=50, library=2000.0, loading=1e-3, noise=0.02)
    drawn = tiny(likelihood=pv.NegativeBinomial()).simulate(plan)
    total = np.asarray(drawn.adata.X.sum(1)).ravel()
    # each gene varies by mean + mean^2 / theta, theta given
    mean = 2000 / 50
    variance = (mean + mean**2 / drawn.truth.sites["noise"]).sum()
    assert abs(total.mean() - 2000) < 4 * np.sqrt(variance / len(total))
    assert total.var() == pytest.approx(variance, rel=0.1)
    assert drawn.below_zero == 0 and "drawn" not in drawn.adata.layers


@pytest.mark.parametrize(("kind", "name"), EVERY_PART)
def test_every_part_can_be_drawn(kind: str, name: str) -> None:
    model = tiny(**{kind: PARTS[kind][name]()})
    drawn, layout = model.simulate(SMALL, seed=1), SMALL.layout()
    story = Story(model, torch.as_tensor(layout.design), 20, 2, 12, 3)
    stated = poutine.trace(story.globals).get_trace().nodes
    shapes = {
        n: node["value"].shape
        for n, node in stated.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }
    assert {n: value.shape for n, value in drawn.truth.sites.items()} == shapes
    assert all(np.isfinite(value).all() for value in drawn.truth.sites.values())
    x = drawn.adata.X if isinstance(drawn.adata.X, np.ndarray) else drawn.adata.X.toarray()
    assert np.isfinite(x).all() and (x >= 0).all() and (x.std(0) > 0).all()
    summary = model.prior_summary(SMALL, draws=4, seed=1)
    np.testing.assert_array_equal(summary.active[0], (np.abs(drawn.truth.effects) > 0.1).sum(1))
    shares = summary.table["mean"].filter(like="share")
    assert ((shares >= 0) & (shares <= 1)).all() and summary.table["mean"].notna().all()
    assert (np.diff(summary.above_singles) <= 0).all()


def test_a_start_gives_what_fit_would_start_from(screen: pv.Screen) -> None:
    model = tiny()
    truth = model.simulate(screen).truth
    seen = screen.select_genes([g for i, g in enumerate(screen.genes.tolist()) if i != 4])
    start = closed_form(model, seen, np.arange(len(screen)))
    np.testing.assert_allclose(truth.loadings_responsive, start.responsive, rtol=1e-5)
    np.testing.assert_allclose(truth.loadings_background, start.background, rtol=1e-5)
    np.testing.assert_allclose(truth.unit, start.unit, rtol=1e-5)
    # every noise is one draw around its start
    assert stats.kstest(np.log(truth.sites["noise"] / start.noise), "norm").pvalue > 0.001


@pytest.mark.parametrize(
    ("screen_like", "options", "words"),
    [
        ("cells.h5ad", {}, ["Screen or a ScreenPlan", "str", "from_anndata"]),
        (SMALL, {"seed": -1}, ["seed", "-1"]),
        (SMALL, {"seed": 1.5}, ["seed", "1.5"]),
        (replace(SMALL, genes=4), {}, ["4 genes", "5 orthonormal", "responsive", "background"]),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(screen_like: Any, options: Any, words: list[str]) -> None:
    with pytest.raises(pv.InputError) as problem:
        tiny().simulate(screen_like, **options)
    assert all(word in str(problem.value) for word in words) and ". " not in str(problem.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cells": {"A": 3}}, ["control", "names A"]),
        ({"cells": {"control": 3}}, ["at least one perturbed"]),
        ({"cells": {}}, ["names none"]),
        ({"cells": {"control": 3, "A": 0}}, ["'A'", "0"]),
        ({"cells": {"control": 3, "A": 2.5}}, ["'A'", "2.5"]),
        ({"cells": {"control": 3, "A+B": 2, "B+A": 2}}, ["'A+B'", "more than once"]),
        ({"cells": {"control": 3, "A+A": 2}}, ["'A+A'"]),
        ({"genes": 0}, ["genes", "0"]),
        ({"batches": True}, ["batches", "True"]),
        ({"effect": 0.0}, ["effect", "0.0"]),
        ({"noise": float("nan")}, ["noise", "nan"]),
        ({"library": -5.0}, ["library", "-5"]),
    ],
)
def test_a_plan_refuses_nonsense_in_one_sentence(settings: Any, words: list[str]) -> None:
    with pytest.raises(pv.InputError) as problem:
        pv.ScreenPlan(**settings)
    assert all(word in str(problem.value) for word in words) and ". " not in str(problem.value)


def test_what_fit_refuses_is_refused(screen: pv.Screen) -> None:
    normalised = replace(screen, counts=None, scale="normalised")
    with pytest.raises(pv.InputError, match="raw counts"):
        tiny(likelihood=pv.NegativeBinomial()).simulate(normalised)
    with pytest.raises(pv.InputError, match="at least one perturbed"):
        tiny().prior_summary(screen.restrict(["control"]))


def test_a_fit_to_cells_of_the_prior_finds_the_scale_that_was_drawn() -> None:
    composition, interaction = pv.Additive(scale=0.8, scale_spread=0.3), pv.Interaction(width=0.1)
    acting = pv.SpikeSlab(activity=0.9, strength=40.0)  # a world in which hardly anything acts tells no scale
    linear = LINEAR | {"composition": composition, "interaction": interaction, "effects": acting}
    model = pv.PerturbedVAE(responsive=5, background=2, hidden=0, **linear)
    names = [f"T{i:02d}" for i in range(24)]
    pairs = [f"{a}+{b}" for a, b in zip(names, names[1:], strict=False)]
    plan = pv.ScreenPlan({"control": 1500} | dict.fromkeys([*names, *pairs], 60), genes=40, loading=2.0, effect=3.0, noise=0.1)
    drawn, found = [], []
    for seed in range(4):
        cells = model.simulate(plan, seed=seed)
        drawn.append(float(cells.truth.sites["composition_scale"]))
        fit = pv.fit(model, read_back(cells.adata), settings=pv.FitSettings(epochs=0), device="cpu", progress=False)
        found.append(fit.modules()[1].family.centre()["composition_scale"].item())
    assert np.std(np.log(drawn)) > 0.1
    np.testing.assert_allclose(found, drawn, rtol=0.1)
