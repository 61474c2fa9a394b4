"""Graph priors: samples against their laws, what modulation and fixed edges promise, and that latents have numbers for names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.inference.storage import part_from_dict, part_to_dict
from pvae_pyro.story import CausalGraph, Cells, FixedGraph, ModulatedGraph, NoGraph, Saturating, Story
from pvae_pyro.story.graphs import Graph
from pvae_pyro.story.plates import Plates

Build = Callable[..., Story]
CellsOf = Callable[..., Cells]

# three targets, two background latents, four responsive ones: six edges
TARGETS, BACKGROUND, LATENTS = 3, 2, 4
MODULATED = ModulatedGraph(density=0.4, weight=0.7, modulation=0.6, coupling=0.2, scale_spread=0.3)
NORMAL, LOG_NORMAL, GATE = "normal", "log-normal", "gate"
# site -> (law, its centre, its spread, its shape), as the docstrings state them
LAWS: dict[str, tuple[Graph, dict[str, tuple[str, float, float, tuple[int, ...]]]]] = {
    "causal": (CausalGraph(density=0.3, weight=0.5), {
        "edge_gates": (GATE, 0.3, 0.0, (6,)), "edge_weights": (NORMAL, 0.0, 0.5, (6,))}),
    "fixed": (FixedGraph(edges=((0, 1), (3, 1)), weight=0.5), {"edge_weights": (NORMAL, 0.0, 0.5, (2,))}),
    "modulated": (MODULATED, {
        "edge_gates": (GATE, 0.4, 0.0, (6,)), "edge_weights": (NORMAL, 0.0, 0.7, (6,)),
        "modulation_scale": (LOG_NORMAL, np.log(0.6), 0.3, ()), "coupling_scale": (LOG_NORMAL, np.log(0.2), 0.3, ()),
        "edge_modulation": (NORMAL, 0.0, 1.0, (3, 6)), "coupling_modulation": (NORMAL, 0.0, 1.0, (3, 8))}),
}  # fmt: skip


def traced(graph: Graph, data: dict[str, Tensor] | None = None) -> tuple[poutine.Trace, dict[str, Tensor]]:
    """One run of the prior and what `matrix` is given."""
    with poutine.trace() as trace, poutine.condition(data=data or {}):
        values = graph.sample(Plates.make(TARGETS, BACKGROUND, LATENTS, 5), torch.ones(LATENTS))
    return trace.trace, values


def sites(trace: poutine.Trace) -> dict[str, Tensor]:
    nodes = trace.nodes.items()
    return {n: s["value"] for n, s in nodes if s["type"] == "sample" and not poutine.util.site_is_subsample(s)}


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_stated_laws_and_their_log_density(name: str) -> None:
    graph, laws = LAWS[name]
    runs, n = [traced(graph)[0] for _ in range(300)], 300
    density = np.array([float(run.log_prob_sum()) for run in runs])
    mean, variance = 0.0, 0.0  # of the log density of a sample: minus the entropy, and the varentropy
    drawn = [sites(run) for run in runs]
    assert drawn[0].keys() == laws.keys()
    for site, (law, centre, spread, shape) in laws.items():
        found = torch.stack([one[site] for one in drawn]).double().numpy()
        assert found.shape == (n, *shape)
        count = found[0].size
        if law == GATE:
            assert set(np.unique(found)) == {0.0, 1.0}
            assert abs(found.mean() - centre) < 4 * np.sqrt(centre * (1 - centre) / found.size)
            odds = np.log(centre / (1 - centre))
            mean += count * (centre * np.log(centre) + (1 - centre) * np.log(1 - centre))
            variance += count * centre * (1 - centre) * odds**2
            continue
        z = ((np.log(found) if law == LOG_NORMAL else found) - centre) / spread
        assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
        assert abs(z.mean()) < 4 / np.sqrt(z.size) and abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
        if count > 1:  # entries of a site are independent of each other
            flat = np.corrcoef(z.reshape(n, -1).T)
            assert np.abs(flat - np.eye(count)).max() < 4.5 / np.sqrt(n)
        mean -= count * (0.5 * np.log(2 * np.pi * np.e * spread**2) + (centre if law == LOG_NORMAL else 0.0))
        # log density of a log-normal at its sample: -z^2 / 2 - spread z and constants
        variance += count * (0.5 + (spread**2 if law == LOG_NORMAL else 0.0))
    assert abs(density.mean() - mean) < 4 * np.sqrt(variance / n)
    # the density of a sample has kurtosis of its own: its variance is known to a tenth or so
    assert density.var() == pytest.approx(variance, rel=0.3)


def test_edges_of_a_condition_have_the_moments_that_modulation_gives_them() -> None:
    """Two targets at doses 1 and 0.5: their squares add, and the scales' own spread counts."""
    design = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.5]])
    graphs, moved = [], []
    for _ in range(800):
        _, values = traced(MODULATED)
        graphs.append(MODULATED.matrix(values, design))
        moved.append(MODULATED.background(values, design, torch.zeros(BACKGROUND, LATENTS)))
    graph, coupling = torch.stack(graphs).double(), torch.stack(moved).double()
    assert not torch.triu(graph).any()
    assert torch.equal(graph[:, 0] != 0, graph[:, 1] != 0)  # one skeleton for all conditions
    assert not coupling[:, 0].any()
    lower = torch.tril_indices(LATENTS, LATENTS, -1)
    edges = graph[:, :, lower[0], lower[1]]
    squares = 1.25 * np.exp(2 * 0.3**2)
    expected = 0.4 * torch.tensor([0.7**2, 0.7**2 + 0.6**2 * squares])
    for found, variance in ((edges, expected), (coupling.flatten(2), torch.tensor([0.0, 0.2**2 * squares]))):
        assert (found.mean((0, 2)).abs() <= 4 * (variance / found[:, 0].numel()).sqrt()).all()
        second = found.square()
        # entries of a draw share its scale: the error is that of means over draws
        error = second.mean(2).std(0) / len(found) ** 0.5
        assert ((second.mean((0, 2)) - variance).abs() <= 4 * error).all()


def test_modulation_adds_up_over_targets_and_their_doses() -> None:
    _, values = traced(MODULATED)
    doses = torch.tensor([0.5, 2.0, 1.0])
    base, plain = torch.zeros(1, 3), torch.randn(BACKGROUND, LATENTS)
    graph = MODULATED.matrix(values, torch.cat([base, torch.diag(doses), doses.unsqueeze(0)]))
    coupling = MODULATED.background(values, torch.cat([base, torch.diag(doses), doses.unsqueeze(0)]), plain)
    for found in (graph, coupling):
        torch.testing.assert_close(found[4] - found[0], (found[1:4] - found[0]).sum(0))
        assert (found[1] - found[0]).abs().max() > 0.05
    torch.testing.assert_close(coupling[0], plain)
    # whatever stands in the columns of targets that no condition has, the last bit included
    wide = {k: torch.cat([v, 1e3 * torch.randn_like(v)]) if k != "edges" else v for k, v in values.items()}
    row = torch.tensor([[0.5, 0.0, 1.0]])
    assert torch.equal(MODULATED.matrix(values, row), MODULATED.matrix(wide, torch.cat([row, 0 * row], 1)))


def joint(story: Story, cells: Cells, data: dict[str, Tensor]) -> poutine.Trace:
    trace = poutine.trace(poutine.condition(story, data=data)).get_trace(cells, torch.arange(len(cells.condition)))
    trace.compute_log_prob()
    return trace


def test_without_modulation_it_is_the_causal_graph(build: Build, cells_of: CellsOf) -> None:
    """Switched off: the same program. At zero: the same density of all that they share, under which the cells stand."""
    causal, off = build(graph=CausalGraph(0.4, 0.7)), build(graph=ModulatedGraph(0.4, 0.7, modulation=0.0, coupling=0.0))
    modulated = build(graph=MODULATED)
    cells = cells_of(causal, 9)
    plain = joint(causal, cells, {})
    data = sites(plain)
    assert data["edge_gates"].any()
    same = joint(off, cells, data)
    assert sites(same).keys() == data.keys() and torch.equal(same.log_prob_sum(), plain.log_prob_sum())
    zero = {"edge_modulation": torch.zeros(TARGETS, 6), "coupling_modulation": torch.zeros(TARGETS, 8)}
    full = joint(modulated, cells, data | zero)
    own = {"edge_modulation", "coupling_modulation", "modulation_scale", "coupling_scale"}
    assert sites(full).keys() == data.keys() | own
    for name in data:
        torch.testing.assert_close(full.nodes[name]["log_prob"], plain.nodes[name]["log_prob"], rtol=1e-5, atol=1e-5)
    off_by_one = joint(modulated, cells, data | {n: v + 1 for n, v in zero.items()})
    assert abs(off_by_one.nodes["z_r"]["log_prob"] - plain.nodes["z_r"]["log_prob"]).max() > 0.1
    one = ModulatedGraph(0.4, 0.7, modulation=0.0)
    assert sites(traced(one)[0]).keys() == {"edge_gates", "edge_weights", "coupling_scale", "coupling_modulation"}
    assert one.matrix(traced(one)[1], torch.ones(2, 3)).shape == (LATENTS, LATENTS)


def test_fixed_edges_are_respected_in_every_draw() -> None:
    graph = FixedGraph(edges=((2, 0), (0, 3), (2, 3)), weight=1.5)
    seen = set()
    for _ in range(200):
        _, values = traced(graph)
        matrix = graph.matrix(values, torch.eye(TARGETS))
        assert {(s, t) for t, s in torch.nonzero(matrix).tolist()} == set(graph.edges)
        seen.add(float(matrix[0, 2]))
    assert len(seen) == 200  # weights are random, edges are not
    trace, values = traced(graph, {"edge_weights": torch.tensor([1.0, 2.0, 3.0])})
    expected = torch.zeros(LATENTS, LATENTS)
    expected[0, 2], expected[3, 0], expected[3, 2] = 1.0, 2.0, 3.0
    assert torch.equal(graph.matrix(values, torch.eye(TARGETS)), expected)
    order = list(graph.order(LATENTS))
    assert sorted(order) == [0, 1, 2, 3] and all(order.index(s) < order.index(t) for s, t in graph.edges)
    assert not torch.triu(expected[order][:, order]).any()
    assert list(FixedGraph(edges=((0, 1), (1, 3))).order(LATENTS)) == [0, 1, 2, 3]
    empty, values = traced(FixedGraph())
    assert sites(empty) == {} and not FixedGraph().matrix(values, torch.eye(TARGETS)).any()


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (((0, 1), (1, 2), (2, 0)), ["circle", "1 -> 2", "leave out"]),
        (((1, 1),), ["circle", "1 -> 1"]),
        (((0, 1), (2, 3), (0, 1)), ["(0, 1)", "more than once"]),
        ((0, 1), ["pairs", "0"]),
        (((0, 1, 2),), ["pairs", "(0, 1, 2)"]),
        (((0, 1.0),), ["pairs", "1.0"]),
        (((0, True),), ["pairs", "True"]),
        (((-1, 0),), ["pairs", "-1"]),
    ],
)
def test_impossible_edges_are_refused_in_one_sentence(edges: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as problem:
        FixedGraph(edges=edges)
    message = str(problem.value)
    assert all(word in message for word in words) and message.endswith(".") and ". " not in message


def test_edges_of_latents_that_do_not_exist_are_refused_when_their_number_is_known(build: Build) -> None:
    graph = FixedGraph(edges=((0, 1), (2, 4)))
    assert build(graph=graph, latents=5).globals().graph.shape == (5, 5)
    for ask in (lambda: build(graph=graph), lambda: traced(graph), lambda: graph.order(4)):
        with pytest.raises(InputError, match=r"\(2, 4\).*4 responsive latents.*correct"):
            ask()


@pytest.mark.parametrize("setting", ["modulation", "coupling", "scale_spread"])
def test_impossible_modulation_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=setting):
        ModulatedGraph(**{setting: -0.1})
    for wrong in ({"density": 1.0}, {"weight": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ModulatedGraph(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weight"):
        FixedGraph(weight=-1.0)


def test_fixed_edges_come_back_from_json_and_from_their_representation() -> None:
    graph = FixedGraph(edges=[[0, 3], [2, 1]], weight=0.5)  # type: ignore[arg-type]
    assert graph.edges == ((0, 3), (2, 1)) and hash(graph) == hash(FixedGraph(((0, 3), (2, 1)), 0.5))
    assert eval(repr(graph)) == graph
    assert part_from_dict(json.loads(json.dumps(part_to_dict(graph))), {"FixedGraph": FixedGraph}) == graph


TURN = torch.tensor([2, 0, 3, 1])  # new latent k is the old latent TURN[k]


def turned(value: Tensor, plates: tuple[str, ...], name: str) -> Tensor:
    """A site's value with the latents renumbered: they are the last dimension wherever they are one."""
    return value[..., TURN] if "latents" in plates or name in ("interaction", "z_r") else value


@pytest.mark.parametrize("graph", [NoGraph(), FixedGraph(edges=((0, 1), (1, 2), (0, 3)))], ids=["none", "fixed"])
def test_numbers_of_latents_are_names(graph: NoGraph | FixedGraph, build: Build, cells_of: CellsOf) -> None:
    """Renumbered latents, edges with them: the same joint density, whatever order the edges then run in."""
    back, other = TURN.argsort().tolist(), graph
    if isinstance(graph, FixedGraph):
        other = FixedGraph(edges=tuple((back[s], back[t]) for s, t in graph.edges))
        assert any(s > t for s, t in other.edges) and any(s < t for s, t in other.edges)
    # a composition without axes of its own, which would have to be renumbered, too
    one, two = (build(graph=g, composition=Saturating()).double() for g in (graph, other))
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        for story, buffer in ((one, scale), (two, scale[TURN])):
            story.effect_scale.copy_(buffer)
            story.unit.copy_(1 / buffer)
        two.decoder.load_state_dict(one.decoder.state_dict())
        two.decoder.responsive.copy_(one.decoder.responsive[TURN])
    cells = cells_of(one, 9)
    cells = Cells(cells.expression.double(), cells.observed.double(), cells.condition, cells.batch, cells.library.double())
    pyro.set_rng_seed(5)
    first = joint(one, cells, {})
    nodes = {name: tuple(f.name for f in first.nodes[name]["cond_indep_stack"]) for name in sites(first)}
    data = {name: turned(value, nodes[name], name) for name, value in sites(first).items() if name != "x"}
    second = joint(two, cells, data)
    assert float(second.log_prob_sum().detach()) == pytest.approx(float(first.log_prob_sum().detach()), rel=1e-12)
