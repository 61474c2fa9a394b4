"""Predictions through graphs against brute force: modulated edges, fixed edges, untrained targets, and the order of latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pvae_pyro.inference.restart as restart_module
from pvae_pyro.guides import AmortizedGuide
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.prediction import Posterior
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import CausalGraph, FixedGraph, ModulatedGraph, PerturbedVAE

FitOf = Callable[..., Fit]
KINDS = ("latent_mean", "measured_pseudobulk")
OWN = ("modulation_scale", "edge_modulation", "coupling_scale", "coupling_modulation")


def asked(fit: Fit) -> list[str]:
    pair = next(name for name in fit.conditions if "+" in name)
    return ["control", "T01", "T02+T05", pair, "T04@0.5", "T01+T02+T06", "X1", "T03+X2"]


def brute_edges(posterior: Posterior, row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """L(u) and B(u) of one condition in one draw, edge by edge and target by target."""
    shared = {k: v for k, v in posterior.recipe.draws[draw].shared.items() if k in ("graph", "coupling")}
    u, values = posterior.recipe.design[row].numpy(), {k: v.double().numpy() for k, v in shared["graph"].items()}
    coupling = shared["coupling"].double().numpy().copy()
    if "graph" in values:
        return values["graph"], coupling
    n = coupling.shape[1]
    graph, edge = np.zeros((n, n)), 0
    for i in range(n):
        for j in range(i):
            graph[i, j] = values["edges"][edge] + sum(u[p] * values["modulation"][p, edge] for p in range(len(u)))
            edge += 1
    for p in range(len(u)):
        coupling += u[p] * values["coupling"][p].reshape(coupling.shape)
    return graph, coupling


@pytest.mark.parametrize("model", ["modulated", "fixed"])
def test_predictors_are_those_of_an_inverse_worked_out_for_every_condition(model: str, fitted: FitOf) -> None:
    posterior = fitted(model).predict(asked(fitted(model)), draws=6, seed=1)
    recipe, story = posterior.recipe, posterior.recipe.guide.story
    w_r, w_b, intercept = (p.detach().double().numpy() for p in (story.decoder.responsive, story.decoder.background,
                                                                 story.decoder.intercept))  # fmt: skip
    modulated = 0.0
    for row in range(len(posterior.conditions)):
        with torch.no_grad():
            eta, variance, v = recipe.predictor(row)
            shift, residual, _ = recipe.shift(row)
            share = recipe.batch_share(row).double().numpy()
        for number, draw in enumerate(recipe.draws):
            graph, coupling = brute_edges(posterior, row, number)
            control, _ = brute_edges(posterior, 0, number)
            modulated = max(modulated, np.abs(graph - control).max())
            reach = np.linalg.inv(np.eye(len(graph)) - graph)  # z_r = reach @ (B' z_b + m + eps)
            loadings = w_b + coupling @ reach.T @ w_r  # (background, genes)
            root, mean = draw.root.double().numpy(), draw.z_mean.double().numpy()
            m = shift[number].double().numpy()
            expected = share[number] @ intercept + mean @ loadings + (reach @ m) @ w_r
            if residual.dim() > 1:
                expected = expected + residual[number].double().numpy()
            np.testing.assert_allclose(eta[number].numpy(), expected, rtol=1e-4, atol=1e-5)
            within = np.diag(loadings.T @ root @ root.T @ loadings)
            within = within + np.diag(w_r.T @ reach @ np.diag(v[number].double().numpy()) @ reach.T @ w_r)
            between = share[number] @ intercept**2 - (share[number] @ intercept) ** 2
            np.testing.assert_allclose(variance[number].numpy(), within + between, rtol=1e-4, atol=1e-5)
    assert (modulated > 0.2) == (model == "modulated")  # there was something to get wrong


def test_untrained_targets_modulate_as_the_prior_says(fitted: FitOf) -> None:
    fit = fitted("modulated")
    drawn = [d.shared["graph"] for d in fit.predict(["X1", "T01"], draws=120, seed=0).recipe.draws]
    assert all(d["modulation"].shape[0] == d["coupling"].shape[0] == 8 for d in drawn)
    for site, name in (("modulation_scale", "modulation"), ("coupling_scale", "coupling")):
        loc, sd = (float(fit.state[f"guide.family.{what}.{site}"]) for what in ("loc", "log_scale"))
        second = np.exp(2 * loc + 2 * np.exp(sd) ** 2)
        new = torch.stack([d[name][-2:] for d in drawn]).double()
        if name == "modulation":  # of edges that are there
            there = torch.stack([d["edges"] != 0 for d in drawn])
            per_draw = torch.stack([x[:, t].square().mean() for x, t in zip(new, there, strict=True) if t.any()])
            assert not new.transpose(1, 2)[~there].any()
        else:
            per_draw = new.square().mean((1, 2))
        assert abs(float(per_draw.mean()) - second) < 4 * float(per_draw.std()) / len(per_draw) ** 0.5
        assert abs(float(new.mean())) < 4 * float(new.std()) / new.numel() ** 0.5
        assert not torch.equal(new[:, 0], new[:, 1])


def with_values(monkeypatch: pytest.MonkeyPatch, values: Callable[[], dict[str, Tensor]], ask: Callable[[], Any]) -> Any:
    """What `ask` gives when every guide's draw of the globals is replaced by `values()`."""
    with monkeypatch.context() as patch:
        patch.setattr(AmortizedGuide, "sample_globals", lambda self: values())
        return ask()


def test_without_modulation_predictions_are_those_of_the_causal_graph(fitted: FitOf, monkeypatch: pytest.MonkeyPatch) -> None:
    modulated = fitted("modulated")
    names = [name for name in asked(modulated) if "X" not in name]

    def sibling(graph: CausalGraph | ModulatedGraph) -> Fit:
        run = modulated.trained[0]
        state = {k: v for k, v in run.state.items() if k.split(".")[-1] not in OWN}
        return replace(modulated, model=modulated.model.replace(graph=graph), trained=(replace(run, state=state),))

    def predicted(fit: Fit) -> list[np.ndarray]:
        posterior = fit.predict(names, draws=8, n_cells={n: 12 if n == "T01" else 40 for n in names}, seed=3)
        return [*(posterior.draws(kind) for kind in KINDS), posterior.new_cells("T02+T05", 30)]  # type: ignore[arg-type]

    causal, off = sibling(CausalGraph(density=0.5)), sibling(ModulatedGraph(density=0.5, modulation=0.0, coupling=0.0))
    expected = predicted(causal)
    for found, one in zip(predicted(off), expected, strict=True):
        np.testing.assert_array_equal(found, one)
    guide, shapes = causal.modules()[1], modulated.modules()[1].family.loc
    zero = {name: torch.zeros_like(shapes[name]) for name in OWN}
    plain = AmortizedGuide.sample_globals
    found = with_values(monkeypatch, lambda: plain(guide) | zero, lambda: predicted(modulated))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    assert max(np.abs(a - b).max() for a, b in zip(predicted(modulated), expected, strict=True)) > 0.05


def test_fixed_edges_hold_in_every_draw_of_a_fit(fitted: FitOf) -> None:
    fit = fitted("fixed")
    graph = fit.model.graph
    assert isinstance(graph, FixedGraph)
    for draw in fit.predict(["T01"], draws=30, seed=2).recipe.draws:
        matrix = draw.shared["graph"]["graph"]
        assert {(s, t) for t, s in torch.nonzero(matrix).tolist()} == set(graph.edges)


def test_without_a_graph_the_numbers_of_latents_are_names(fitted: FitOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same globals under other numbers: the same predictions of every condition, draw by draw."""
    fit = fitted("no graph")
    story, guide = fit.modules()
    order = torch.randperm(story.n_latents, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(order, torch.arange(story.n_latents))
    latent = {name for name, site in guide.family.sites.items() if any(f.name == "latents" for f in site.plates)}
    assert {"effects", "gates", "coupling", "log_variance", "inclusion"} <= latent
    run = fit.trained[0]
    state = dict(run.state)
    for name in ("story.effect_scale", "story.unit", "story.decoder.responsive"):
        state[name] = state[name][order]
    other = replace(fit, trained=(replace(run, state=state),))
    plain = AmortizedGuide.sample_globals

    def predicted(one: Fit) -> list[np.ndarray]:
        # enough cells for noise that is drawn by gene: below, cells are simulated with noise for each latent
        posterior = one.predict(asked(fit)[:6], draws=10, n_cells=100, seed=5)
        return [posterior.draws(kind) for kind in KINDS]  # type: ignore[arg-type]

    def values() -> dict[str, Tensor]:
        return {name: value[..., order] if name in latent else value for name, value in plain(guide).items()}

    found = with_values(monkeypatch, values, lambda: predicted(other))
    for a, b in zip(found, predicted(fit), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert np.abs(predicted(other)[0] - predicted(fit)[0]).max() > 0.05  # loadings alone may not be renumbered


def test_predictions_do_not_hang_on_the_order_of_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal graph that is free to adapt, started with its latents in reverse: no more apart than two seeds are."""
    world = simulate("linear-gaussian", seed=3, targets=8, doubles=0, controls=150, cells_per_condition=30, genes=40)
    screen = Screen.from_anndata(world.adata, "condition")
    model = PerturbedVAE(background=3, hidden=4, graph=CausalGraph(density=0.5))
    settings = FitSettings(epochs=6, batch_size=200, validation=0.0)
    original = restart_module.closed_form

    def reversed_start(*arguments: Any) -> Any:
        start = original(*arguments)
        along = {name: np.ascontiguousarray(getattr(start, name)[..., ::-1]) for name in ("unit", "scores", "score_sd", "scale")}
        return replace(start, responsive=np.ascontiguousarray(start.responsive[::-1]), **along)

    def means(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one = fit(model, screen, settings=settings, seed=seed, device="cpu", progress=False)
        pairs = [f"{a}+{b}" for i, a in enumerate(one.targets) for b in one.targets[i + 1 :]]
        drawn = one.predict(pairs, draws=150, seed=seed).draws("latent_mean")
        return drawn.mean(0), drawn.std(0), one.modules()[0].decoder.responsive.detach().numpy()

    plain, again = means(0), means(1)
    with monkeypatch.context() as patch:
        patch.setattr(restart_module, "closed_form", reversed_start)
        turned = means(0)
    # the latents were in reverse, and training left them there
    loadings = [one[2] / np.linalg.norm(one[2], axis=1, keepdims=True) for one in (plain, turned)]
    match = np.abs(loadings[0] @ loadings[1].T)
    assert (match.argmax(1) == np.arange(len(match))[::-1]).all()
    seeds, order = (float(np.sqrt(np.mean((plain[0] - one[0]) ** 2))) for one in (again, turned))
    assert order < 1.5 * seeds
    assert order < 0.25 * float(plain[1].mean())
