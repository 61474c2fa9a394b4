"""The story as a Pyro program: its sites, shapes and plates for every choice of parts, and its joint density."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pvae_pyro.errors import InputError
from pvae_pyro.story import (
    PARTS,
    Additive,
    CausalGraph,
    Cells,
    Centroid,
    FixedGraph,
    Gaussian,
    Horseshoe,
    Interaction,
    LaplaceEffects,
    ModulatedGraph,
    NegativeBinomial,
    NoAlignment,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
    Saturating,
    SpikeSlab,
    Story,
    StudentT,
)
from pvae_pyro.story.model import effect_of

Build = Callable[..., Story]
CellsOf = Callable[..., Cells]
Sites = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]  # shape of the value, names of the plates


def expected_sites(chosen: dict[str, str], n: int) -> Sites:
    """What the docstrings of the parts promise for 3 targets, 4 latents, 2 background latents, 6 genes and 2 pairs."""
    per_target, per_latent = ("latents", "targets"), ("latents",)
    sites: Sites = {
        "effect_scale": ((4,), per_latent), "effects": ((3, 4), per_target), "log_variance": ((3, 4), per_target),
        "coupling": ((2, 4), ("background", "latents")), "kappa": ((4,), per_latent), "noise": ((6,), ("genes",)),
        "surprise": ((2,), ("combinations",)), "stretch": ((2,), ("combinations",)), "interaction": ((2, 4), ("combinations",)),
        "residual": ((2, 6), ("combinations",)),
        "z_b": ((n, 2), ("cells",)), "z_r": ((n, 4), ("cells",)), "x": ((n, 6), ("cells",)),
    }  # fmt: skip
    if chosen["effects"] == "spike-slab":
        sites |= {"inclusion": ((4,), per_latent), "gates": ((3, 4), per_target), "acting": ((), ()),
                  "activity": ((3, 1), ("targets",))}  # fmt: skip
    if chosen["effects"] == "horseshoe":
        sites |= {"openness": ((4,), per_latent), "local_scale": ((3, 4), per_target)}
    if chosen["graph"] in ("causal", "modulated"):
        sites |= {"edge_gates": ((6,), ("edges",)), "edge_weights": ((6,), ("edges",))}
    if chosen["graph"] == "modulated":
        sites |= {"modulation_scale": ((), ()), "edge_modulation": ((3, 6), ("edges", "targets")), "coupling_scale": ((), ()),
                  "coupling_modulation": ((3, 8), ("background_edges", "targets"))}  # fmt: skip
    if chosen["composition"] in ("saturating", "bilinear"):
        sites |= {"composition_scale": ((), ()), "capacity": ((), ())}
    if chosen["composition"] == "bilinear":  # rank 4 of 4 latents: 5 * 6 / 2 products
        sites |= {"pairing_scale": ((), ()), "pairing": ((15, 4), ("features", "latents"))}
    return sites


def found_sites(trace: poutine.Trace) -> Sites:
    return {
        name: (tuple(site["value"].shape), tuple(sorted(f.name for f in site["cond_indep_stack"])))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    }


def parts_of(chosen: dict[str, str]) -> dict[str, object]:
    return {seam: PARTS[seam][name]() for seam, name in chosen.items()}


def test_every_choice_states_the_sites_that_it_promises(chosen: dict[str, str], build: Build, cells_of: CellsOf) -> None:
    story = build(**parts_of(chosen))
    cells = cells_of(story, 7)
    trace = poutine.trace(story).get_trace(cells, torch.arange(7))
    assert found_sites(trace) == expected_sites(chosen, 7)
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
            assert site["is_observed"] == (name == "x")
            # what the plates leave of a site's density is one number for each independent element
            sizes = [f.size for f in sorted(site["cond_indep_stack"], key=lambda f: f.dim)]
            if name == "activity":  # of targets alone, whose plate stands before that of latents
                sizes.append(1)
            assert site["log_prob"].shape == torch.Size(sizes)
            assert site["scale"] == (20 / 7 if name in ("z_b", "z_r", "x") else 1.0)
            assert torch.isfinite(site["log_prob"]).all()
    graph = story.globals().graph
    assert graph.shape == ((6, 4, 4) if chosen["graph"] == "modulated" else (4, 4)) and not torch.triu(graph).any()


@pytest.mark.parametrize("name", PARTS["alignment"])
def test_alignment_is_no_part_of_the_program(name: str, build: Build, cells_of: CellsOf) -> None:
    story, other = build(alignment=PARTS["alignment"][name]()), build(alignment=Centroid(weight=123.0))
    values = []
    for one in (story, other):
        pyro.set_rng_seed(1)
        values.append(poutine.trace(one).get_trace(cells_of(one, 5)).log_prob_sum())
    assert torch.equal(*values)


def test_without_combinations_or_edges_their_sites_are_absent(build: Build, cells_of: CellsOf) -> None:
    story = build(design=[[0, 0], [1, 0], [0, 1]], latents=1)
    names = set(found_sites(poutine.trace(story).get_trace(cells_of(story, 3))))
    assert names.isdisjoint({"surprise", "interaction", "residual", "edge_gates", "edge_weights"})
    assert {"kappa", "gates"} <= names  # kappa stays: pairs never seen need it


def test_the_data_are_drawn_as_the_story_says(build: Build, cells_of: CellsOf) -> None:
    story = build(effects=NormalEffects(), graph=NoGraph())
    cells = cells_of(story, 6)
    trace = poutine.trace(story).get_trace(cells)
    value = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    moved = value["z_b"] @ value["coupling"]
    law = trace.nodes["z_r"]["fn"]
    controls = cells.condition == 0
    torch.testing.assert_close(law.mean[controls], moved[controls])
    torch.testing.assert_close(law.scale[controls], torch.ones_like(law.scale[controls]))
    eta = story.decoder.intercept[cells.batch] + value["z_r"] @ story.decoder.responsive + value["z_b"] @ story.decoder.background
    residual = torch.zeros(6, 6)
    residual[4:] = value["residual"]
    expected = torch.nn.functional.softplus(eta + residual[cells.condition])
    torch.testing.assert_close(trace.nodes["x"]["fn"].base_dist.loc, expected)


def test_noise_variance_is_one_for_controls_and_clipped(build: Build) -> None:
    story = build()
    nu = torch.tensor([[0.5, -0.2, 0.0, 9.0], [0.3, 0.4, -9.0, 0.0], [0.1, -3.0, 0.0, 0.0]])
    found = story.noise_variance(nu, story.design)
    assert torch.equal(found[0], torch.ones(4))
    torch.testing.assert_close(found[1].log(), torch.tensor([0.5, -0.2, 0.0, 2.0]))
    torch.testing.assert_close(found[4].log(), torch.tensor([0.8, 0.2, -2.0, 2.0]))
    torch.testing.assert_close(found[5].log(), torch.tensor([0.35, -2.0, -2.0, 0.0]))  # doses 0.5 and 2


def test_the_effect_of_a_condition_solves_the_graph(build: Build) -> None:
    g = build().globals()
    total = effect_of(g)
    torch.testing.assert_close(total, total @ g.graph.T + g.shift)
    assert total.shape == (6, 4) and not total[0].any()
    story = build(graph=ModulatedGraph(density=0.9))
    g = story.globals()
    expected = torch.stack([torch.linalg.inv(torch.eye(4) - graph) @ m for graph, m in zip(g.graph, g.shift, strict=True)])
    torch.testing.assert_close(effect_of(g), expected)
    story = build(graph=FixedGraph(edges=((3, 0), (0, 1))))
    g = story.globals()
    torch.testing.assert_close(effect_of(g, story.order), g.shift @ torch.linalg.inv(torch.eye(4) - g.graph).T)


def log_normal(value: np.ndarray, centre: np.ndarray | float, spread: float) -> float:
    return float(np.sum(stats.lognorm.logpdf(value, s=spread, scale=centre)))


def normal(value: np.ndarray, mean: np.ndarray | float = 0.0, sd: np.ndarray | float = 1.0) -> float:
    return float(np.sum(stats.norm.logpdf(value, mean, sd)))


# settings unlike any default, so that a default cannot hide a wrong formula
SLAB = SpikeSlab(inclusion=0.3, strength=5.0, activity=0.6, activity_strength=2.0, scale_spread=0.2)
GRAPH = CausalGraph(density=0.4, weight=0.7)
MODULATED = ModulatedGraph(density=0.4, weight=0.7, modulation=0.6, coupling=0.2, scale_spread=0.3)
FIXED = FixedGraph(edges=((3, 0), (0, 1), (2, 1)), weight=0.7)  # against the latent order, too
SATURATING = Saturating(scale=0.9, scale_spread=0.15, capacity=1.3, capacity_spread=0.4)
INTERACTION = Interaction(width=0.4, width_spread=0.35, growth=0.7, stretch=0.2, outside=0.11, surprise_spread=0.6)


def independent_log_joint(story: Story, cells: Cells, v: dict[str, np.ndarray], n_cells: int) -> float:
    """Log joint density by scipy, from the formulas of the docstrings, cell by cell and condition by condition."""
    model, design = story.model, story.design.numpy()
    tau0, typical, spread, unit = story.effect_scale.numpy(), story.typical.numpy(), story.spread.numpy(), story.unit.numpy()
    total, w = log_normal(v["effect_scale"], tau0, 0.2), v["effects"]
    if isinstance(model.effects, LaplaceEffects):
        total += float(np.sum(stats.laplace.logpdf(w, 0, v["effect_scale"] / np.sqrt(2))))
    elif isinstance(model.effects, Horseshoe):
        o, lam = v["openness"], v["local_scale"]
        total += normal(w) + float(np.sum(stats.halfcauchy.logpdf(lam))) + float(np.sum(stats.beta.logpdf(o, 2.4, 3.6)))
        c = v["effect_scale"] / np.sqrt(o)
        tau = c * o / (1 - o)
        w = w * tau * np.sqrt(c**2 * lam**2 / (c**2 + tau**2 * lam**2))
    else:
        total += normal(w, 0, v["effect_scale"])
    if "gates" in v:
        total += float(np.sum(stats.beta.logpdf(v["inclusion"], 1.5, 3.5)))
        total += float(stats.beta.logpdf(v["acting"], 3.0, 2.0))
        total += float(np.sum(stats.beta.logpdf(v["activity"], 2 * v["acting"], 2 * (1 - v["acting"]))))
        total += float(np.sum(stats.bernoulli.logpmf(v["gates"], v["activity"] * v["inclusion"])))
        w = v["gates"] * w
    k = w.shape[1]
    graph, coupling = np.zeros((len(design), k, k)), np.repeat(v["coupling"][None], len(design), axis=0)
    if "edge_gates" in v:
        total += float(np.sum(stats.bernoulli.logpmf(v["edge_gates"], 0.4))) + normal(v["edge_weights"], 0, 0.7)
        graph[:, *np.tril_indices(k, -1)] = v["edge_gates"] * v["edge_weights"]
    elif "edge_weights" in v:
        total += normal(v["edge_weights"], 0, 0.7)
        for (source, target), weight in zip(FIXED.edges, v["edge_weights"], strict=True):
            graph[:, target, source] = weight
    if "edge_modulation" in v:
        total += normal(v["edge_modulation"]) + normal(v["coupling_modulation"])
        total += log_normal(v["modulation_scale"], 0.6, 0.3) + log_normal(v["coupling_scale"], 0.2, 0.3)
        for d, p in np.argwhere(design != 0):
            graph[d][np.tril_indices(k, -1)] += design[d, p] * v["modulation_scale"] * v["edge_gates"] * v["edge_modulation"][p]
            coupling[d] += design[d, p] * v["coupling_scale"] * v["coupling_modulation"][p].reshape(coupling[d].shape)
    total += normal(v["coupling"], 0, 0.1) + normal(v["log_variance"], 0, 0.1)
    total += log_normal(v["kappa"], 0.4, 0.35) + log_normal(v["noise"], story.noise_start.numpy(), 1.0)
    scale, capacity = float(v.get("composition_scale", np.ones(()))), np.inf
    if isinstance(model.composition, Saturating):
        capacity = float(v["capacity"])
        total += log_normal(v["composition_scale"], 0.9, 0.15) + log_normal(v["capacity"], 1.3, 0.4)
    elif "composition_scale" in v:
        total += log_normal(v["composition_scale"], 0.8, 0.2)
    shift, residual, number = np.zeros((len(design), k)), np.zeros((len(design), len(spread))), 0
    for d, u in enumerate(design):
        shift[d] = u @ w
        if (u != 0).sum() >= 2:
            length = np.abs(u) * np.linalg.norm(unit * w, axis=1)
            pairs = sum(length[p] * length[q] for p in range(len(u)) for q in range(p))
            shift[d] *= scale / np.sqrt(1 + pairs / capacity**2)
            s, eta, r = v["surprise"][number], v["interaction"][number], v["residual"][number]
            width = v["kappa"] * np.sqrt(typical**2 + 0.7 * ((u[:, None] * w) ** 2).sum(0))
            total += log_normal(s, 1.0, 0.6) + normal(eta, 0, width * s) + normal(r, 0, 0.11 * spread * s)
            total += normal(v["stretch"][number], 0, 0.2)
            shift[d], residual[d], number = shift[d] * (1 + v["stretch"][number]) + eta, r, number + 1
    local = 0.0
    decoder = [p.detach().numpy() for p in (story.decoder.intercept, story.decoder.responsive, story.decoder.background)]
    for c in range(len(cells.condition)):
        d, z_b, z_r = int(cells.condition[c]), v["z_b"][c], v["z_r"][c]
        variance = np.exp(np.clip(design[d] @ v["log_variance"], -2, 2))
        inverse = np.linalg.inv(np.eye(k) - graph[d])
        covariance = inverse @ np.diag(variance) @ inverse.T
        local += normal(z_b)
        local += float(stats.multivariate_normal.logpdf(z_r, inverse @ (z_b @ coupling[d] + shift[d]), covariance))
        predictor = decoder[0][int(cells.batch[c])] + z_r @ decoder[1] + z_b @ decoder[2] + residual[d]
        x = cells.observed[c].numpy()
        b = np.maximum(1, 0.5 / story.level.numpy())
        if isinstance(model.likelihood, Gaussian):
            local += normal(x, np.logaddexp(0, b * predictor) / b, v["noise"])
        elif isinstance(model.likelihood, StudentT):
            df = 3 * np.maximum(1, 0.5 / story.level.numpy())
            local += float(np.sum(stats.t.logpdf(x, df, np.logaddexp(0, b * predictor) / b, v["noise"])))
        else:
            mean = float(cells.library[c]) / 1e4 * np.exp(predictor)
            local += float(np.sum(stats.nbinom.logpmf(x, v["noise"], v["noise"] / (v["noise"] + mean))))
    return total + n_cells / len(cells.condition) * local


@pytest.mark.parametrize(
    "parts",
    [
        {"effects": SLAB, "graph": GRAPH, "composition": SATURATING},
        {"effects": NormalEffects(0.2), "graph": NoGraph(), "composition": Additive(0.8, 0.2), "likelihood": NegativeBinomial()},
        {"effects": SLAB, "graph": GRAPH, "composition": Additive(), "likelihood": NegativeBinomial()},
        {"effects": SLAB, "graph": MODULATED, "composition": SATURATING},
        {"effects": SLAB, "graph": FIXED, "composition": SATURATING},
        {"effects": SLAB, "graph": GRAPH, "composition": SATURATING, "likelihood": StudentT(df=3.0, tails_from=0.5)},
        {"effects": Horseshoe(open_share=0.4, strength=6.0, scale_spread=0.2), "graph": NoGraph(), "composition": SATURATING},
        {"effects": LaplaceEffects(0.2), "graph": NoGraph(), "composition": SATURATING},
    ],
    ids=["first options", "second options", "mixed", "modulated", "fixed", "heavy tails", "horseshoe", "laplace"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_log_joint_density_against_scipy(parts: dict[str, object], seed: int, build: Build, cells_of: CellsOf) -> None:
    story = build(n_cells=50, interaction=INTERACTION, **parts).double()
    generator = torch.Generator().manual_seed(seed)
    for buffer in (story.effect_scale, story.typical, story.noise_start, story.spread, story.unit, story.level):
        buffer.copy_(0.1 + torch.rand(len(buffer), dtype=torch.float64, generator=generator))
    cells = cells_of(story, 9, seed)
    cells = Cells(cells.expression.double(), cells.observed.double(), cells.condition, cells.batch, cells.library.double())
    pyro.set_rng_seed(seed)
    trace = poutine.trace(story).get_trace(cells, torch.arange(9))
    values = {n: s["value"].detach().numpy() for n, s in trace.nodes.items() if s["type"] == "sample" and n != "x"}
    expected = independent_log_joint(story, cells, values, 50)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(expected, rel=1e-9)


def test_a_swap_of_unknown_parts_or_impossible_sizes_is_refused() -> None:
    with pytest.raises(TypeError):
        PerturbedVAE().replace(decoder="deep")
    assert PerturbedVAE().replace(alignment=NoAlignment()).alignment == NoAlignment()
    for wrong in ({"responsive": 0}, {"background": 0}, {"hidden": -1}, {"responsive": 2.5}, {"hidden": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            PerturbedVAE(**wrong)  # type: ignore[arg-type]


def test_the_representation_of_a_model_makes_it_again(chosen: dict[str, str]) -> None:
    import pvae_pyro.story as room

    model = PerturbedVAE(**parts_of(chosen), responsive=3)  # type: ignore[arg-type]
    names = {name: getattr(room, name) for name in room.__all__}
    assert eval(repr(model), names) == model
