"""Edges as a table: what one fit says of them, and that only restarts which find the same edge call it identified."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Ensemble
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.inference.edges import AGREED, NOT_IDENTIFIED, agreeing_edges
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import CausalGraph, FixedGraph, Gaussian, ModulatedGraph, NoGraph, PerturbedVAE
from pvae_pyro.story.graphs import Graph

LATENTS = 5
# source, target -> probability and weight, of the overwritten fits
KNOWN = {(0, 2): (0.99, 1.5), (1, 4): (0.97, -0.8), (3, 4): (0.3, 2.0)}
Rewritten = dict[tuple[int, int], tuple[float, float]]


@cache
def small_screen() -> Screen:
    world = simulate("linear-gaussian", seed=1, targets=8, doubles=0, controls=60, cells_per_condition=12, genes=30)
    return Screen.from_anndata(world.adata, "condition")


@cache
def fitted(graph: Graph, epochs: int = 0, seed: int = 0) -> Fit:
    model = PerturbedVAE(responsive=LATENTS, background=2, hidden=0, graph=graph, likelihood=Gaussian(link="identity"))
    settings = FitSettings(epochs=epochs, batch_size=100, validation=0.0)
    return fit(model, small_screen(), settings=settings, seed=seed, device="cpu", progress=False)


def rewritten(one: Fit, edges: Rewritten, order: list[int] | None = None, signs: tuple[int, ...] = (1,) * LATENTS) -> Fit:
    """The fit with these edges and no others, its latents turned by `signs`, then numbered by `order` (new k: old order[k])."""
    order = list(range(LATENTS)) if order is None else order
    run = one.trained[0]
    state = {name: value.clone() for name, value in run.state.items()}
    probability, weight = torch.full((2, LATENTS, LATENTS), 1e-9)
    for (source, target), (p, a) in edges.items():
        i, j = order.index(target), order.index(source)
        assert i > j  # or the latent order would not allow it
        probability[i, j], weight[i, j] = p, a * signs[source] * signs[target]
    lower = tuple(torch.tril_indices(LATENTS, LATENTS, -1))
    state["guide.family.logits.edge_gates"] = torch.logit(probability[lower])
    state["guide.family.loc.edge_weights"] = weight[lower]
    state["guide.family.log_scale.edge_weights"] = torch.full_like(weight[lower], -3.0)
    turn = torch.tensor(signs, dtype=torch.float32).unsqueeze(1)
    state["story.decoder.responsive"] = (turn * state["story.decoder.responsive"])[order]
    return replace(one, trained=(replace(run, state=state),))


def by_edge(table: pd.DataFrame) -> pd.DataFrame:
    assert not table.duplicated(["source", "target"]).any()
    return table.set_index(["source", "target"])


def test_a_fit_shows_its_edges_and_calls_none_identified() -> None:
    fit = rewritten(fitted(CausalGraph()), KNOWN)
    table = by_edge(fit.edges_table(draws=100, seed=1))
    assert list(table.index) == [(j, i) for i in range(LATENTS) for j in range(i)]
    assert not table["identified"].any() and (table["note"] == NOT_IDENTIFIED).all()
    for edge, row in table.iterrows():
        p, a = KNOWN.get(edge, (1e-9, 0.0))
        assert row["probability"] == pytest.approx(p, rel=1e-3)  # of the gate, not of the draws
        sd = np.sqrt(p * (a**2 + np.exp(-6)) - (p * a) ** 2)
        assert abs(row["mean"] - p * a) <= 4 * sd / 100**0.5 + 1e-9
        assert row["sd"] == pytest.approx(sd, rel=0.6, abs=1e-3)
    # the draws are those of the effects and of predictions
    drawn = fit.predict(["T01"], draws=100, seed=1).recipe.draws
    weight = torch.stack([d.shared["graph"]["edges"] for d in drawn])
    np.testing.assert_allclose(table["mean"], weight.mean(0), atol=1e-6)


def test_tables_of_other_graphs() -> None:
    control = fitted(ModulatedGraph(density=0.3)).edges_table(draws=20)
    plain = by_edge(control)
    np.testing.assert_allclose(plain["probability"], 0.3, atol=1e-5)
    assert len(plain) == 10 and not plain["identified"].any()
    edges = ((4, 0), (0, 1), (2, 1))
    fixed = by_edge(fitted(FixedGraph(edges=edges)).edges_table(draws=20))
    assert len(fixed) == 10  # whatever the order of the latents, half of the pairs
    assert {edge for edge, row in fixed.iterrows() if row["probability"] > 0} == set(edges)
    assert set(fixed["probability"]) == {0.0, 1.0}
    assert (fixed["sd"] > 0).equals(fixed["probability"] == 1.0)
    none = by_edge(fitted(NoGraph()).edges_table(draws=5))
    assert not none[["probability", "mean", "sd"]].to_numpy().any() and (none["note"] == NOT_IDENTIFIED).all()


def agreed(table: pd.DataFrame) -> set[tuple[int, int]]:
    assert ((table["note"] == AGREED) == table["identified"]).all()
    chosen = table[table["identified"]]
    return set(zip(chosen["source"], chosen["target"], strict=True))


ORDER, SIGNS = [1, 0, 3, 2, 4], (1, -1, -1, 1, 1)  # an order in which no known edge runs backwards


def test_restarts_agree_whatever_the_numbers_and_signs_of_latents() -> None:
    base = fitted(CausalGraph())
    first, same = rewritten(base, KNOWN), rewritten(base, KNOWN, ORDER, SIGNS)
    for fits in ([first, same], [first, same, first]):
        table = agreeing_edges(fits, draws=40)
        assert agreed(table) == {(0, 2), (1, 4)}  # 0.3 is no edge
        rows = by_edge(table)
        assert rows.loc[(0, 2), "fits"] == len(fits) and rows.loc[(3, 4), "fits"] == 0
        assert (table["match"] > 0.999).all()
        for edge in ((0, 2), (1, 4)):
            p, a = KNOWN[edge]
            assert rows.loc[edge, "mean"] == pytest.approx(p * a, abs=4 * abs(a) * np.sqrt(p * (1 - p) / 40) + 0.03)
            assert rows.loc[edge, "probability"] == pytest.approx(p, rel=1e-3)
    # numbered as the first of the fits numbers them
    back = [ORDER.index(k) for k in range(LATENTS)]
    assert agreed(agreeing_edges([same, first], draws=10)) == {(back[0], back[2]), (back[1], back[4])}
    # the sd is of the draws within fits and of their means between them
    apart = rewritten(base, KNOWN | {(0, 2): (0.999999, 3.5)}), rewritten(base, KNOWN | {(0, 2): (0.999999, 1.5)})
    row = by_edge(agreeing_edges(apart, draws=40)).loc[(0, 2)]
    assert row["mean"] == pytest.approx(2.5, abs=0.05) and row["sd"] == pytest.approx(np.hypot(1.0, np.exp(-3)), abs=0.05)


@pytest.mark.parametrize(
    ("edges", "order"),
    [
        ({(0, 2): (0.3, 1.5)}, None),
        ({(0, 2): (0.99, -1.5)}, None),
        ({}, None),
        ({(0, 1): (0.99, 1.5)}, None),
        ({(2, 0): (0.99, 1.5)}, [2, 1, 0, 3, 4]),
    ],
    ids=["closed", "other sign", "absent", "elsewhere", "other direction"],
)
def test_an_edge_that_one_restart_has_otherwise_is_not_identified(edges: Rewritten, order: list[int] | None) -> None:
    base = fitted(CausalGraph())
    kept = {(1, 4): KNOWN[1, 4]}
    first, other = rewritten(base, KNOWN), rewritten(base, kept | edges, order)
    for fits in ([first, other], [other, first]):
        assert len(agreed(agreeing_edges(fits, draws=10))) == 1  # the other edge still is


def test_latents_that_are_not_found_again_have_no_identified_edge() -> None:
    base = rewritten(fitted(CausalGraph()), KNOWN)
    run = base.trained[0]
    state = dict(run.state)
    loadings: Tensor = state["story.decoder.responsive"].clone()
    loadings[2] = torch.randn(loadings.shape[1], generator=torch.Generator().manual_seed(1)) * loadings[2].std()
    state["story.decoder.responsive"] = loadings
    other = replace(base, trained=(replace(run, state=state),))
    table = agreeing_edges([base, other], draws=10)
    assert agreed(table) == {(1, 4)}
    touched = (table["source"] == 2) | (table["target"] == 2)
    assert (table["match"][touched] < 0.7).all() and (table["match"][~touched] > 0.99).all()
    assert (0, 2) in agreed(agreeing_edges([base, other], draws=10, closeness=0.0))


def test_members_of_an_ensemble_are_restarts() -> None:
    base = fitted(CausalGraph())
    members = [rewritten(base, KNOWN), rewritten(base, KNOWN, ORDER, SIGNS)]
    both = replace(base, guide=Ensemble(n=2), trained=tuple(one.trained[0] for one in members))
    pd.testing.assert_frame_equal(agreeing_edges(both, draws=10), agreeing_edges(members, draws=10))
    table = both.edges_table(draws=10)
    assert table["member"].tolist() == [0] * 10 + [1] * 10 and not table["identified"].any()


def test_one_fit_or_other_genes_are_refused() -> None:
    one = fitted(CausalGraph())
    for alone in (one, [one]):
        with pytest.raises(InputError, match="at least two fits, but 1"):
            agreeing_edges(alone)
    with pytest.raises(InputError, match="different genes"):
        agreeing_edges([one, replace(one, genes=one.genes[::-1])])


def test_fits_that_learnt_no_edge_do_not_call_one_identified() -> None:
    """Cells of any graph are cells of another one, so that restarts of a short fit have nothing but their prior's edges."""
    restarts = [fitted(CausalGraph(density=0.5), epochs=2, seed=seed) for seed in (0, 1)]
    table = agreeing_edges(restarts, draws=10)
    assert (table["match"] > 0.7).any() and agreed(table) == set()
