"""Export to ArviZ: real draws under named dimensions, densities that others compute alike, and a file that loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import arviz_base
import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Amortized, Ensemble, Flow, LowRank, Map
from pvae_pyro.guides.ensemble import member_seed
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.prediction.density import log_density
from pvae_pyro.prediction.recipe import Recipe
from pvae_pyro.prediction.sites import draw_sites
from pvae_pyro.report.datatree import _prior, _stack
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import (
    FixedGraph,
    Mixture,
    ModulatedGraph,
    NegativeBinomial,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
)

MODEL = PerturbedVAE(background=2, hidden=4, responsive=3)
FITS: dict[str, tuple[PerturbedVAE, Any]] = {
    "default": (MODEL, Amortized()),
    "escape": (MODEL.replace(penetrance=Mixture(centre=0.6)), LowRank(rank=2)),
    "modulated": (MODEL.replace(graph=ModulatedGraph(), effects=NormalEffects()), Flow(layers=1, hidden=4)),
    "counts": (MODEL.replace(likelihood=NegativeBinomial(), graph=FixedGraph(edges=((2, 0),))), Map()),
    "ensemble": (MODEL.replace(graph=NoGraph()), Ensemble(n=2)),
}
HELD_OUT = ("T01+T03", "T02+T04")
GROUPS = ("posterior", "sample_stats", "posterior_predictive", "log_likelihood", "observed_data", "constant_data", "prior",
          "prior_predictive", "predictions", "predictions_constant_data")  # fmt: skip


@cache
def screen() -> Screen:
    """Control, T01 to T04 and five pairs; the last of 13 genes has no count."""
    world = simulate("default", seed=3, targets=4, doubles=5, controls=90, cells_per_condition=45, genes=13, batches=2)
    world.adata.X[:, -1] = 0
    return Screen.from_anndata(world.adata, "condition", batch_key="batch")


@cache
def fitted(name: str = "default") -> Fit:
    model, guide = FITS[name]
    trained = screen().restrict([c for c in screen().conditions if c not in HELD_OUT])
    settings = FitSettings(epochs=1, batch_size=200, validation=0.0)
    return fit(model, trained, guide=guide, settings=settings, device="cpu", progress=False)


@cache
def tree(name: str = "default", draws: int = 24) -> xr.DataTree:
    return fitted(name).to_datatree(draws, seed=5, genes=None, predictions=HELD_OUT)


@pytest.fixture(autouse=True)
def figures_and_random_numbers_are_left_alone() -> Iterator[None]:
    plt.switch_backend("Agg")
    with torch.random.fork_rng(devices=[]):
        yield
    plt.close("all")


def test_the_screen_is_as_the_tests_need_it() -> None:
    assert set(HELD_OUT) < set(screen().conditions)
    assert not fitted().active[-1] and fitted().active[:-1].all()
    assert sum("+" in name for name in fitted().conditions) == 3


@pytest.mark.parametrize("name", FITS)
def test_every_group_has_real_draws_of_named_dimensions(name: str) -> None:
    one, found = fitted(name), tree(name)
    chains = len(one.members)
    assert set(found.children) == set(GROUPS)
    for group in found.children.values():
        assert "not MCMC" in group.attrs["note"] and "not MCMC" in found.attrs["note"]
        if group.name.endswith("data"):
            continue
        assert dict(group.sizes) | {"chain": chains, "draw": 24 // chains} == dict(group.sizes)
        assert not any(str(dim).count("_dim_") for dim in group.dims), group.dims
        for variable, values in group.data_vars.items():
            assert values.dims[:2] == ("chain", "draw") and np.isfinite(values).all(), variable
    for group in ("posterior_predictive", "prior_predictive", "predictions", "log_likelihood"):
        assert float(found[group]["y_bulk"].std("draw").min()) > 0
    bulk = found["posterior_predictive"]["y_bulk"]
    assert bulk.dims == ("chain", "draw", "condition", "gene")
    assert bulk.coords["condition"].values.tolist() == [c for c in one.conditions if c != "control"]
    assert bulk.coords["gene"].values.tolist() == one.genes[one.active].tolist()
    for group in ("posterior", "prior"):
        assert found[group]["w"].dims == ("chain", "draw", "perturbation", "latent")
        assert found[group]["graph"].dims == ("chain", "draw", "latent", "latent_source")
        assert found[group].coords["perturbation"].values.tolist() == list(one.targets)
        assert found[group]["noise"].dims == ("chain", "draw", "gene")
        assert found[group]["interaction"].dims == ("chain", "draw", "combination", "latent")
    assert found["predictions"].coords["condition"].values.tolist() == list(HELD_OUT)
    assert found["log_likelihood"]["y_bulk"].dims == ("chain", "draw", "condition")


@pytest.mark.parametrize("name", ["default", "ensemble"])
def test_pseudobulks_and_shifts_are_the_draws_of_predict(name: str) -> None:
    one, found = fitted(name), tree(name)
    names = found["posterior_predictive"].coords["condition"].values.tolist()
    posterior = one.predict([*names, *HELD_OUT, "control"], draws=24, seed=5)
    drawn, latent = posterior.draws()[..., one.active], posterior.draws("latent_mean")[..., one.active]
    shape = (len(one.members), -1, *drawn[0].shape)
    drawn, latent = drawn.reshape(shape), latent.reshape(shape)
    np.testing.assert_array_equal(found["posterior_predictive"]["y_bulk"], drawn[:, :, : len(names)])
    np.testing.assert_array_equal(found["predictions"]["y_bulk"], drawn[:, :, len(names) : -1])
    np.testing.assert_array_equal(found["posterior"]["delta_mean"], latent[:, :, : len(names)] - latent[:, :, [-1]])
    own = posterior.to_datatree()
    np.testing.assert_array_equal(own["predictions"]["y_bulk"], drawn)
    np.testing.assert_array_equal(own["posterior"]["latent_mean"], latent)
    assert own["predictions_constant_data"]["is_train"].values.tolist() == [*[True] * len(names), False, False, True]


def test_chains_are_members_with_equally_many_draws() -> None:
    one, whole = fitted("ensemble"), fitted("ensemble").to_datatree(7, seed=5, genes=None)
    assert dict(whole["posterior"].sizes)["chain"] == 2 and whole["posterior"].sizes["draw"] == 4
    for chain, member in enumerate(one.members):
        alone = member.to_datatree(4, seed=member_seed(5, chain), genes=None)
        for group in ("posterior", "sample_stats", "posterior_predictive", "log_likelihood", "prior", "prior_predictive"):
            xr.testing.assert_equal(
                whole[group].dataset.isel(chain=[chain]).drop_vars("chain"), alone[group].dataset.drop_vars("chain")
            )
    with pytest.raises(InputError, match="multiple of 2"):
        one.predict(["T01"], draws=7).to_datatree()


def test_members_of_different_rank_are_padded() -> None:
    one, other = np.ones((4, 2, 3)), np.zeros((4, 2, 2))
    found = _stack([one, other])
    assert found.shape == (2, 4, 2, 3) and (found[0] == 1).all() and (found[1, ..., :2] == 0).all()
    assert np.isnan(found[1, ..., 2]).all()


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_effects_are_gated_and_edges_stand_where_they_belong(group: str) -> None:
    found = tree()[group]
    np.testing.assert_array_equal(found["w"], found["gates"] * found["effects"])
    assert set(np.unique(found["gates"])) == {0, 1}
    for edge in found.coords["edge"].values:
        source, target = map(int, edge.split("->"))
        expected = (found["edge_gates"] * found["edge_weights"]).sel(edge=edge)
        np.testing.assert_array_equal(found["graph"].sel(latent=target, latent_source=source), expected)
    assert not np.triu(found["graph"]).any() and found["graph"].any()


def log_normal(x: Any, centre: Any, spread: float) -> Any:
    return stats.lognorm.logpdf(x, spread, scale=centre)


def total(found: xr.DataTree, parts: dict[str, Any]) -> np.ndarray:
    """Sum over everything but draws of log densities that name the sites, which must be all of them."""
    sites = set(found["posterior"].data_vars) - {"w", "graph", "delta_mean"}
    assert set(parts) == sites
    return sum(np.asarray(part).reshape(part.shape[1], -1).sum(1) for part in parts.values())


def test_lp_is_the_prior_density_by_scipy() -> None:
    found, story = tree(), {k.removeprefix("story."): v.double().numpy() for k, v in fitted().state.items()}
    x = {name: values.values.astype(float) for name, values in found["posterior"].data_vars.items()}
    surprise, scale = x["surprise"][..., None], story["effect_scale"]
    parts = {
        "inclusion": stats.beta.logpdf(x["inclusion"], 2, 2),
        "effect_scale": log_normal(x["effect_scale"], scale, 0.05),
        "acting": stats.beta.logpdf(x["acting"], 1.2, 2.8),
        "activity": stats.beta.logpdf(x["activity"], x["acting"][..., None], 1 - x["acting"][..., None]),
        "gates": stats.bernoulli.logpmf(x["gates"], x["activity"][..., None] * x["inclusion"][:, :, None]),
        "effects": stats.norm.logpdf(x["effects"], 0, x["effect_scale"][:, :, None]),
        "edge_gates": stats.bernoulli.logpmf(x["edge_gates"], 0.05),
        "edge_weights": stats.norm.logpdf(x["edge_weights"], 0, 0.3),
        "coupling": stats.norm.logpdf(x["coupling"], 0, 0.1),
        "log_variance": stats.norm.logpdf(x["log_variance"], 0, 0.1),
        "kappa": log_normal(x["kappa"], 0.9, 0.25),
        "composition_scale": log_normal(x["composition_scale"], 1.0, 0.07),
        "capacity": log_normal(x["capacity"], 7.0, 0.25),
        "pairing_scale": log_normal(x["pairing_scale"], 3.0, 0.25),
        "pairing": stats.norm.logpdf(x["pairing"], 0, x["pairing_scale"][..., None, None] * story["typical"]),
        "noise": log_normal(x["noise"], story["noise_start"], 1.0),
        "surprise": log_normal(x["surprise"], 1.0, 0.3),
        "stretch": stats.norm.logpdf(x["stretch"], 0, 0.15 * story["stretch_unit"]),
        "interaction": stats.norm.logpdf(x["interaction"], 0, x["kappa"][:, :, None] * story["typical"] * surprise),
        "residual": stats.norm.logpdf(x["residual"], 0, 0.07 * story["spread"] * surprise),
    }
    np.testing.assert_allclose(found["sample_stats"]["log_prior"][0], total(found, parts), rtol=1e-5, atol=1e-3)


def test_log_q_is_the_density_of_the_guide_by_scipy() -> None:
    found, one = tree(), fitted()
    story, guide = one.modules()
    family, design = guide.family, story.design[story.combinations]
    x = {name: values.values.astype(float) for name, values in found["posterior"].data_vars.items()}
    loc = {name: p.detach().double().numpy() for name, p in family.loc.items()}
    sd = {name: p.detach().double().exp().numpy() for name, p in family.log_scale.items()}
    positive = {"effect_scale", "kappa", "composition_scale", "capacity", "pairing_scale", "noise"}
    shares = {"inclusion", "acting", "activity"}
    parts = {name: stats.norm.logpdf(x[name], loc[name], sd[name]) for name in loc if name not in positive | shares}
    parts |= {name: log_normal(x[name], np.exp(loc[name]), sd[name]) for name in positive}
    for name in shares:
        logit, jacobian = np.log(x[name]) - np.log1p(-x[name]), np.log(x[name]) + np.log1p(-x[name])
        parts[name] = stats.norm.logpdf(logit, loc[name].reshape(logit.shape[2:]), sd[name].reshape(logit.shape[2:])) - jacobian
    for name, logits in family.logits.items():
        parts[name] = stats.bernoulli.logpmf(x[name], torch.sigmoid(logits.double()).detach().numpy())
    own = {n: p.detach().double().numpy() for n, p in guide.named_parameters() if n.startswith(("comb", "res", "str", "sur"))}
    parts["surprise"] = log_normal(x["surprise"], np.exp(own["surprise_loc"]), np.exp(own["surprise_log_scale"]))
    parts["stretch"] = stats.norm.logpdf(x["stretch"], own["stretch_loc"], np.exp(own["stretch_log_scale"]))
    parts["residual"] = stats.norm.logpdf(x["residual"], own["residual_loc"], np.exp(own["residual_log_scale"]))
    # of the interaction, the part of the measured total that composition leaves open, given the drawn effects
    drawn = one.predict(["T01"], draws=24, seed=5).recipe.draws
    with torch.no_grad():
        composed = np.stack([story.compose(d.shared, design).double().numpy() for d in drawn])[None]
    width = x["kappa"][:, :, None] * story.typical.double().numpy() * x["surprise"][..., None]
    cells = np.exp(2 * own["combination_log_scale"])
    share = width**2 / (width**2 + cells)
    gap = own["combination_loc"] - composed * (1 + x["stretch"][..., None])
    parts["interaction"] = stats.norm.logpdf(x["interaction"], share * gap, np.sqrt(share * cells))
    np.testing.assert_allclose(found["sample_stats"]["log_q"][0], total(found, parts), rtol=1e-5, atol=2e-3)


def test_log_q_of_correlated_globals_has_their_covariance_and_jacobian() -> None:
    """Of the covered sites by torch's dense multivariate normal, the others left as they are."""
    found, (story, guide) = tree("escape"), fitted("escape").modules()
    family = guide.family
    assert len(family.covered) == len(family.loc)
    with torch.no_grad():
        loc, log_scale, factor = (p.double() for p in family.parameters_of_law())
        root = log_scale.exp().unsqueeze(-1) * factor
        law = torch.distributions.MultivariateNormal(loc, root @ root.T + torch.diag((2 * log_scale).exp()))
        expected = np.zeros(24)
        sites = draw_sites(guide, 24, 5)
        for draw in range(24):
            u, jacobian = [], torch.tensor(0.0, dtype=torch.float64)
            for name in family.covered:
                support, value = family.sites[name].support, torch.as_tensor(sites.values[name][draw]).double()
                u.append(support.inv(value).reshape(-1))
                jacobian = jacobian + support.log_abs_det_jacobian(support.inv(value), value).sum()
            expected[draw] = law.log_prob(torch.cat(u)) - jacobian
        # gates, and what belongs to combinations, stand beside the joint law
        rest = [_independent(guide, story, {n: torch.as_tensor(v[draw]) for n, v in sites.values.items()}) for draw in range(24)]
    np.testing.assert_allclose(found["sample_stats"]["log_q"][0], expected + rest, rtol=1e-4, atol=0.02)


def _independent(guide: Any, story: Any, x: dict[str, torch.Tensor]) -> float:
    """Log density of gates and of what belongs to combinations."""
    d = torch.distributions
    law = {name: d.Bernoulli(logits=logits) for name, logits in guide.family.logits.items()}
    law["surprise"] = d.LogNormal(guide.surprise_loc, guide.surprise_log_scale.exp())
    law["stretch"] = d.Normal(guide.stretch_loc, guide.stretch_log_scale.exp())
    law["residual"] = d.Normal(guide.residual_loc, guide.residual_log_scale.exp())
    shared = guide.shared({**x, **{name: x[name].unsqueeze(-1) for name in ("penetrance", "activity")}})
    law["interaction"] = d.Normal(*guide._interaction(shared, x["surprise"], x["stretch"]))
    return float(sum(one.log_prob(x[name]).double().sum() for name, one in law.items()))


def test_point_estimates_add_nothing_to_log_q() -> None:
    found, (story, guide) = tree("counts"), fitted("counts").modules()
    for name in guide.family.loc:
        assert float(found["posterior"][name].std("draw").max()) < 1e-6 * max(1.0, float(abs(found["posterior"][name]).max()))
    sites = draw_sites(guide, 24, 5)
    with torch.no_grad():
        rest = []
        for draw in range(24):
            x = {n: torch.as_tensor(v[draw]) for n, v in sites.values.items()} | {"penetrance": torch.ones(4)}
            rest.append(_independent(guide, story, x))
    np.testing.assert_allclose(found["sample_stats"]["log_q"][0], rest, rtol=1e-5, atol=1e-3)


def dense(recipe: Recipe, row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance (genes, genes) of one pseudobulk whose cells all respond."""
    with torch.no_grad():
        eta, spread, _ = recipe.predictor(row)
        mean, variance = recipe.moments(eta, spread, torch.stack([d.shared["noise"] for d in recipe.draws]))
        story = recipe.guide.story
        edges = story.edges(recipe.draws[draw].shared, recipe.design[row : row + 1])
        graph, coupling = (edges[n].reshape(edges[n].shape[-2:]) for n in ("graph", "coupling"))
        responsive = torch.linalg.solve((torch.eye(len(graph)) - graph).T, story.decoder.responsive)
        programs = recipe.draws[draw].root.T @ (story.decoder.background + coupling @ responsive)
        shared = story.model.likelihood.slope(eta, story.level)[draw] * programs
        covariance = (shared.double().T @ shared.double()).numpy()
    np.fill_diagonal(covariance, variance[draw].double().numpy())
    return mean[draw].double().numpy(), covariance / int(recipe.n_cells[row])


@pytest.mark.parametrize("name", ["default", "modulated", "counts"])
def test_log_likelihood_is_that_of_a_dense_normal_by_scipy(name: str) -> None:
    one = fitted(name)
    genes = one.genes[[7, 2, 3]].tolist()
    found = one.to_datatree(5, seed=5, conditions=["T02", "T01"], genes=genes)
    assert found["log_likelihood"].coords["condition"].values.tolist() == ["T02", "T01"]
    recipe = one.predict(["T02", "T01"], draws=5, seed=5).recipe
    assert isinstance(recipe, Recipe)
    for row, condition in enumerate(("T02", "T01")):
        y = one.training.mean[one.training.index(condition)][[7, 2, 3]]
        np.testing.assert_array_equal(found["observed_data"]["y_bulk"].sel(condition=condition), y)
        for draw in range(5):
            mean, covariance = dense(recipe, row, draw)
            law = stats.multivariate_normal(mean[[7, 2, 3]], covariance[np.ix_([7, 2, 3], [7, 2, 3])])
            expected = law.logpdf(y)
            np.testing.assert_allclose(found["log_likelihood"]["y_bulk"][0, draw, row], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["default", "escape"])
def test_the_density_is_that_of_the_pseudobulks_that_are_drawn(name: str) -> None:
    """Its height and its curvature along the axes of repeated draws under one set of globals, which have their covariance."""
    recipe = fitted(name).predict(["T04"], draws=1, n_cells=60, seed=1).recipe
    assert isinstance(recipe, Recipe)
    shared = dict(recipe.draws[0].shared)
    if name == "escape":  # half of the cells, from far away
        shared |= {"penetrance": torch.full_like(shared["penetrance"], 0.5), "effects": 3 * shared["effects"]}
    recipe = replace(recipe, draws=[replace(recipe.draws[0], shared=shared)])
    repeats, genes = 3000, len(recipe.guide.story.spread)
    with torch.no_grad():
        drawn = replace(recipe, draws=recipe.draws * repeats).block(slice(0, 1))[1][:, 0].double().numpy()
    centre, (size, axes) = drawn.mean(0), np.linalg.eigh(np.cov(drawn.T))
    steps = np.concatenate([np.zeros((1, genes)), (size**0.5 * axes).T, -(size**0.5 * axes).T])
    top, *sides = (log_density(recipe, (centre + step)[None], np.arange(genes))[0, 0] for step in steps)
    # one sd to either side costs half a nat; the variances of 3,000 draws have relative errors of 2.6 %
    np.testing.assert_allclose(top - np.reshape(sides, (2, genes)).mean(0), 0.5, rtol=4.5 * (2 / repeats) ** 0.5 + 0.02)
    height = -0.5 * (genes * np.log(2 * np.pi) + np.log(size).sum())
    assert abs(top - height) < 4.5 * (genes / 2 / repeats) ** 0.5 + genes**2 / repeats


def test_prior_draws_have_the_moments_of_the_prior() -> None:
    draws = 250
    found, story = tree("default", draws)["prior"], fitted().modules()[0]

    def agrees(x: Any, mean: Any, sd: Any) -> None:
        """Of (draws, ...): mean and sd within 4.5 standard errors."""
        x = np.asarray(x, dtype=float)
        assert (np.abs(x.mean(0) - mean) < 4.5 * np.asarray(sd) / draws**0.5 + 1e-5).all()
        assert (np.abs(x.std(0) / sd - 1) < 4.5 / (2 * draws) ** 0.5).all()

    agrees(np.log(found["kappa"][0]), np.log(0.9), 0.25)
    agrees(np.log(found["capacity"][0]), np.log(7), 0.25)
    agrees(np.log(found["effect_scale"][0]), story.effect_scale.log().numpy(), 0.05)
    agrees(found["coupling"][0], 0, 0.1)
    agrees(found["inclusion"][0], 0.5, (0.25 / 5) ** 0.5)
    agrees((found["effects"] / found["effect_scale"])[0], 0, 1)
    agrees(found["acting"][0], 0.3, (0.21 / 5) ** 0.5)
    agrees(found["gates"][0], 0.15, (0.15 * 0.85) ** 0.5)
    places = [fitted().genes.tolist().index(gene) for gene in found.coords["gene"].values]
    agrees(np.log(found["noise"][0]), story.noise_start.log().numpy()[places], 1)
    assert abs(float((found["graph"] != 0).sel(latent=2, latent_source=0).mean()) - 0.05) < 4.5 * (0.05 * 0.95 / draws) ** 0.5
    shifts = found["delta_mean"].sel(condition="T01")  # a prior knows no direction
    assert (abs(shifts.median("draw")) < abs(shifts).mean("draw")).all()


def test_prior_and_posterior_draws_do_not_go_together() -> None:
    found = tree("default", 250)
    for group, name in (("", "kappa"), ("_predictive", "y_bulk")):
        one, other = (found[f"{kind}{group}"][name].values[0].reshape(250, -1) for kind in ("prior", "posterior"))
        ours = [stats.spearmanr(a, b).statistic for a, b in zip(one.T, other.T, strict=True)]
        assert np.abs(ours).max() < 5 / 250**0.5
    wider = found["prior"]["delta_mean"].std("draw") / found["posterior"]["delta_mean"].std("draw")
    # twice as wide if half of the gates were open; a priori 0.3 * 0.5 of them are
    assert float(wider.median()) > 2 * (0.15 / 0.5) ** 0.5


def test_the_prior_does_not_know_the_guide() -> None:
    one = fitted("counts")
    state = {n: t + 1 if n == "guide.family.loc.noise" else t for n, t in one.state.items()}
    assert any(n == "guide.family.loc.noise" for n in state)
    other = replace(one, trained=(replace(one.trained[0], state=state),)).to_datatree(24, seed=5, genes=None)
    for group in ("prior", "prior_predictive"):
        xr.testing.assert_equal(tree("counts")[group].dataset, other[group].dataset)
    assert not tree("counts")["posterior_predictive"].dataset.equals(other["posterior_predictive"].dataset)
    drawn = _prior(one, one.predict(["T01"], draws=1).recipe).draws[0]  # type: ignore[arg-type]
    assert not drawn.z_mean.any()  # backgrounds of control cells are those of the prior, too
    torch.testing.assert_close(drawn.root, torch.eye(len(drawn.root)))


def test_facts_of_conditions() -> None:
    one, found = fitted(), tree()["constant_data"]
    rows = [one.training.index(name) for name in found.coords["condition"].values]
    training = one.training
    np.testing.assert_array_equal(found["n_cells"], training.n_cells[rows])
    np.testing.assert_array_equal(found["design"], training.design[rows])
    np.testing.assert_array_equal(found["control_mean"], training.mean[training.index("control"), one.active])
    expected = np.sqrt(training.variance[rows][:, one.active] / training.n_cells[rows][:, None])
    np.testing.assert_allclose(found["se"], expected)
    assert found["is_train"].all() and found["inclusion_prob"].dims == ("chain", "perturbation", "latent")
    np.testing.assert_array_equal(found["inclusion_prob"][0], one.modules()[1].inclusion())
    held_out = tree()["predictions_constant_data"]
    assert not held_out["is_train"].any() and held_out["n_targets"].values.tolist() == [2, 2]
    sized = one.to_datatree(2, predictions={"T03+T01": 7})["predictions_constant_data"]
    assert sized["n_cells"].values.tolist() == [7]
    assert "inclusion_prob" not in tree("modulated")["constant_data"]
    assert set(one.to_datatree(2).children) == set(GROUPS) - {"predictions", "predictions_constant_data"}


def test_genes_are_those_that_move_most_or_those_named() -> None:
    one = fitted()
    bulk = one.to_datatree(2, genes=3)["posterior_predictive"]["y_bulk"]
    moved = np.square(one.training.mean - one.training.mean[one.training.index("control")]).sum(0)
    assert bulk.coords["gene"].values.tolist() == one.genes[np.sort(np.argsort(-moved)[:3])].tolist()
    named = one.genes[[5, 1]].tolist()
    chosen = one.to_datatree(24, seed=5, conditions=["control", "T02"], genes=named)
    assert chosen["posterior_predictive"].coords["gene"].values.tolist() == named
    for group, variable in (("posterior", "delta_mean"), ("posterior_predictive", "y_bulk"), ("posterior", "noise")):
        values = chosen[group][variable]
        whole = tree()[group][variable].sel(gene=named)
        if "condition" in values.dims:
            values, whole = values.sel(condition="T02"), whole.sel(condition="T02")
        np.testing.assert_array_equal(values, whole)
    assert not chosen["posterior"]["delta_mean"].sel(condition="control").any()


def test_held_out_truth_stands_beside_predictions() -> None:
    one, truth = fitted(), screen().summary()
    asked = ["T04+T02", "T01+T03"]
    posterior = one.predict(asked, draws=30, n_cells=dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True)), seed=4)
    found = posterior.to_datatree(truth)
    rows = [truth.index(name) for name in asked]
    assert found["observed_data"].coords["condition"].values.tolist() == ["T02+T04", "T01+T03"]
    np.testing.assert_array_equal(found["observed_data"]["y_bulk"], truth.mean[rows][:, one.active])
    np.testing.assert_array_equal(found["posterior_predictive"]["y_bulk"][0], posterior.draws()[..., one.active])
    # asked for other numbers of cells, it still predicts what the test measured
    other = one.predict(asked, draws=30, n_cells=5, seed=4).to_datatree(truth)
    xr.testing.assert_equal(other["posterior_predictive"].dataset, found["posterior_predictive"].dataset)
    np.testing.assert_array_equal(other["constant_data"]["n_cells"], truth.n_cells[rows])
    mean, covariance = dense(posterior.recipe, 1, 6)  # type: ignore[arg-type]
    expected = stats.multivariate_normal(mean, covariance).logpdf(truth.mean[rows[1], one.active])
    np.testing.assert_allclose(found["log_likelihood"]["y_bulk"][0, 6, 1], expected, rtol=1e-3, atol=1e-2)
    gene = [str(one.genes[4])]
    np.testing.assert_array_equal(
        posterior.to_datatree(truth, genes=gene)["posterior_predictive"]["y_bulk"],
        found["posterior_predictive"]["y_bulk"].sel(gene=gene),
    )


@pytest.mark.parametrize("name", ["default", "ensemble"])
def test_a_netcdf_file_gives_every_bit_back(name: str, tmp_path: Path) -> None:
    before = tree(name)
    before.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as after:
        assert set(after.children) == set(before.children) and after.attrs == before.attrs
        for group in before.children:
            one, other = before[group].dataset, after[group].dataset
            assert set(one.variables) == set(other.variables) and one.attrs == other.attrs
            for variable, values in one.variables.items():
                read = other.variables[variable]
                assert read.dims == values.dims and read.attrs == values.attrs
                if values.dtype.kind in "US":
                    assert read.values.tolist() == values.values.tolist()
                else:
                    assert read.dtype == values.dtype and read.values.tobytes() == values.values.tobytes()


def test_the_same_seed_gives_the_same_tree_and_another_one_does_not() -> None:
    again, other = (fitted().to_datatree(4, seed=seed, genes=2) for seed in (5, 6))
    first = fitted().to_datatree(4, seed=5, genes=2)
    for group in first.children:
        xr.testing.assert_equal(first[group].dataset, again[group].dataset)
    for group in ("posterior", "prior", "sample_stats", "posterior_predictive", "prior_predictive"):
        assert not first[group].dataset.equals(other[group].dataset)


def test_what_cannot_be_exported_is_refused() -> None:
    one = fitted()
    with pytest.raises(InputError, match="was not trained.*predictions"):
        one.to_datatree(2, conditions=["T01+T03"])
    with pytest.raises(InputError, match="T99"):
        one.to_datatree(2, conditions=["T99"])
    with pytest.raises(InputError, match="no condition"):
        one.to_datatree(2, conditions=[])
    with pytest.raises(InputError, match="no count in training"):
        one.to_datatree(2, genes=[str(one.genes[-1])])
    for genes in (0, -1, True):
        with pytest.raises(InputError, match="number of genes"):
            one.to_datatree(2, genes=genes)
    for draws in (0, -3):
        with pytest.raises(InputError, match="draws"):
            one.to_datatree(draws)
    with pytest.raises(InputError, match="seed"):
        one.to_datatree(2, seed=-1)
    with pytest.raises(InputError, match="T01"):
        one.predict(["T01+T04"], draws=2).to_datatree(screen().summary().restrict(["T02"]))


def flat(tree: xr.DataTree, *groups: str) -> xr.DataTree:
    """Conditions and genes as one dimension: what functions of ArviZ want that take one-dimensional observations."""
    return xr.DataTree.from_dict(
        {g: tree[g].dataset[["y_bulk"]].stack(obs=("condition", "gene"), create_index=False) for g in groups}
    )


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_arviz_stats_reads_it() -> None:
    found = tree("ensemble", 60)
    table = arviz_stats.summary(found, var_names=["kappa", "delta_mean"], coords={"condition": ["T01"]})
    assert len(table) == 3 + 12
    assert np.isclose(table["mean"].iloc[0], float(found["posterior"]["kappa"][..., 0].mean()), atol=0.01)
    loo = arviz_stats.loo(found, pointwise=True)
    assert loo.n_data_points == 7 and np.isfinite(loo.elpd) and loo.pareto_k.dims == ("condition",)
    ranked = arviz_stats.compare({"ensemble": found, "default": tree("default", 250)})
    assert set(ranked.index) == {"ensemble", "default"} and np.isfinite(ranked["elpd"].astype(float)).all()
    # leaving a whole condition out, for each of its genes
    beside = found["log_likelihood"].dataset.broadcast_like(found["posterior_predictive"]["y_bulk"])
    whole = xr.DataTree.from_dict(
        {name: found[name].dataset for name in ("posterior", "posterior_predictive", "observed_data")}
        | {"log_likelihood": beside[["y_bulk"]]}
    )
    pit = arviz_stats.loo_pit(whole)["y_bulk"]
    assert pit.dims == ("condition", "gene") and ((pit >= 0) & (pit <= 1)).all()
    approximate = arviz_stats.loo_approximate_posterior(found, found["sample_stats"]["lp"], found["sample_stats"]["log_q"])
    assert np.isfinite(approximate.elpd)
    stats_, likelihood = found["sample_stats"], found["log_likelihood"]["y_bulk"]
    np.testing.assert_allclose(stats_["lp"], stats_["log_prior"] + likelihood.sum("condition"), rtol=1e-12)


def test_arviz_plots_draw_it() -> None:
    found = tree("ensemble")
    held_out = fitted().predict(list(HELD_OUT), draws=40).to_datatree(screen().summary())
    arviz_plots.plot_forest(found, var_names=["w"], coords={"perturbation": ["T01"]})
    scored = flat(held_out, "posterior_predictive", "observed_data")
    for coverage in (False, True):
        arviz_plots.plot_ppc_pit(scored, coverage=coverage)
    arviz_plots.plot_ppc_interval(scored)
    error = arviz_stats.metrics(scored, kind="rmse").mean
    gap = held_out["posterior_predictive"]["y_bulk"].mean(("chain", "draw")) - held_out["observed_data"]["y_bulk"]
    assert np.isclose(error, float((gap**2).mean() ** 0.5), rtol=0.05)


def test_arviz_itself_can_be_imported_and_reads_the_file(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        tree().to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
        table = arviz.summary(arviz.from_netcdf(tmp_path / "fit.nc"), var_names=["kappa"])
    assert len(table) == 3 and arviz_base.__version__ >= "0.8"
