"""Edges against a known graph: right whatever the numbers and signs of latents, and false discoveries counted as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.edges import align_edges, bayesian_fdr, edge_scores, score_edges
from pvae_pyro.guides import Ensemble
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import Gaussian, PerturbedVAE

pytestmark = pytest.mark.filterwarnings("error")

LATENTS = 4
SETTINGS = FitSettings(epochs=0, batch_size=100, validation=0.0)


def run(guide: Ensemble | None = None) -> Fit:
    world = simulate("linear-gaussian", seed=1, targets=8, doubles=0, controls=60, cells_per_condition=12, genes=30)
    model = PerturbedVAE(responsive=LATENTS, background=2, hidden=0, likelihood=Gaussian(link="identity"))
    screen = Screen.from_anndata(world.adata, "condition")
    return fit(model, screen, settings=SETTINGS, guide=guide, device="cpu", progress=False)


@pytest.fixture(scope="module")
def known() -> tuple[Fit, np.ndarray, np.ndarray]:
    """A fit with two edges written into it, the true graph that has them in another order of latents, and true loadings."""
    one = run()
    state = one.state
    own, weight = torch.full((2, LATENTS, LATENTS), 1e-9)
    for target, source, p, a in ((2, 0, 0.99, 1.5), (3, 1, 0.97, -0.8)):
        own[target, source], weight[target, source] = p, a
    lower = tuple(torch.tril_indices(LATENTS, LATENTS, -1))
    state["guide.family.logits.edge_gates"] = torch.logit(own[lower])
    state["guide.family.loc.edge_weights"] = weight[lower]
    state["guide.family.log_scale.edge_weights"] = torch.full_like(weight[lower], -3.0)
    order, signs = [3, 1, 0, 2], np.array([1, -1, -1, 1])  # true latent k is fitted latent order[k], turned
    found = state["story.decoder.responsive"].double().numpy()
    loadings = np.zeros((LATENTS, len(one.genes)))
    loadings[:, one.active] = signs[:, None] * found[order]
    graph = weight.numpy()[np.ix_(order, order)] * signs[:, None] * signs[None, :]
    return one, np.where(np.abs(graph) > 0.1, graph, 0.0), loadings


def test_a_fit_that_is_right_up_to_order_and_sign_is_right(known: tuple[Fit, np.ndarray, np.ndarray]) -> None:
    fit_, graph, loadings = known
    aligned = align_edges(fit_, 3 * loadings, draws=50)
    assert (aligned.cosine > 0.999).all()
    np.testing.assert_allclose(aligned.probability, np.where(graph != 0, np.where(graph > 0, 0.99, 0.97), 0), atol=0.021)
    assert set(zip(*np.nonzero(aligned.probability > 0.5), strict=True)) == set(zip(*np.nonzero(graph), strict=True))
    assert (np.sign(aligned.weight) == np.sign(graph))[graph != 0].all()
    found = score_edges(fit_, graph, loadings, draws=50)
    assert (found["auprc"], found["skeleton_auprc"], found["shd"], found["sign_accuracy"]) == (1, 1, 0, 1)
    assert (found["found_0.05"], found["realised_0.05"], found["power_0.05"]) == (2, 0, 1)
    assert found["chance"] == pytest.approx(2 / 12) and found["skeleton_chance"] == pytest.approx(2 / 6)
    # the same fit against a graph that it does not have
    other = score_edges(fit_, np.roll(graph, 1, axis=(0, 1)), loadings, draws=50)
    assert other["realised_0.1"] == 1 and other["shd"] > 0


def test_reversed_edges_are_wrong_but_found_in_the_skeleton(known: tuple[Fit, np.ndarray, np.ndarray]) -> None:
    fit_, graph, loadings = known
    found = score_edges(fit_, graph.T, loadings, draws=50)
    assert found["skeleton_auprc"] == 1 and found["auprc"] < 0.5
    assert found["shd"] == found["shd_empty"] == 2, "a reversal counts once"
    assert found["realised_0.2"] == 1 and np.isnan(found["sign_accuracy"])


def test_scores_are_their_definitions() -> None:
    p = np.array([[0, 0.9, 0.2], [0.1, 0, 0.0], [0.6, 0.3, 0]])
    graph = np.array([[0, 2.0, 0], [0, 0, 0], [0, -1.0, 0]])
    found = edge_scores(p, graph)
    # by probability: .9 true, .6 false, .3 true, .2, .1, 0
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["skeleton_auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["shd"] == 2 and found["shd_empty"] == 2 and found["edges"] == 2
    assert found["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.1**2 + 0.6**2 + 0.7**2) / 6)
    assert (found["found_0.1"], found["realised_0.1"], found["power_0.1"]) == (1, 0, 0.5)
    assert (found["found_0.2"], found["realised_0.2"]) == (1, 0), "two would claim 0.25"
    with pytest.raises(ValueError, match="square"):
        edge_scores(p[:2], graph[:2])


def test_calibrated_probabilities_hold_their_rate() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 0.6, size=40_000)
    true = rng.uniform(size=p.shape) < p
    for row in bayesian_fdr(p, true).itertuples():
        error = np.sqrt(row.alpha / row.found)
        assert row.realised == pytest.approx(row.alpha, abs=4 * error)
    sure = bayesian_fdr(np.clip(p * 1.4, 0, 1), true)
    assert (sure["realised"] > sure["alpha"] + 0.02).all()
    none = bayesian_fdr([0.1, 0.2], [True, False])
    assert (none["found"] == 0).all() and (none["realised"] == 0).all() and (none["power"] == 0).all()
    with pytest.raises(ValueError, match="one probability"):
        bayesian_fdr([0.1], [True, False])


def test_what_has_no_latents_of_these_is_refused(known: tuple[Fit, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match="30 genes of the fit"):
        align_edges(known[0], known[2][:, :5])
    with pytest.raises(InputError, match="one member at a time"):
        align_edges(run(Ensemble(n=2)), known[2])
