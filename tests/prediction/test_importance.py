"""How near a guide is to the exact posterior: importance ratios against densities written out, and the shape of their tail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Ensemble, Map
from pvae_pyro.guides.ensemble import Restart, restarts
from pvae_pyro.inference import Fit, FitSettings, diagnosis, fit
from pvae_pyro.inference.restart import training_rows
from pvae_pyro.prediction.importance import log_ratios, tail_shape, usable
from pvae_pyro.prediction.sites import draw_sites
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import Gaussian, PerturbedVAE

LINEAR = PerturbedVAE(responsive=2, background=2, hidden=0, likelihood=Gaussian(link="identity"))


@pytest.fixture(scope="module")
def screen() -> Screen:
    world = simulate("linear-gaussian", seed=1, targets=4, doubles=2, genes=12, controls=80, cells_per_condition=20)
    return Screen.from_anndata(world.adata, "condition")


@pytest.fixture(scope="module")
def linear(screen: Screen) -> Fit:
    return fit(LINEAR, screen, settings=FitSettings(epochs=2, validation=0.1), device="cpu", progress=False)


def test_pareto_k_tells_a_posterior_that_is_too_narrow() -> None:
    """A target Normal(0, 1) in five dimensions and guides of smaller sd: k rises, and is 0 for the exact one."""

    def k(scale: float) -> float:
        x = scale * np.random.default_rng(0).standard_normal((2000, 5))
        return tail_shape(stats.norm.logpdf(x).sum(1) - stats.norm.logpdf(x, scale=scale).sum(1))

    assert k(1.0) == 0
    for scale in (0.5, 0.4, 0.2):  # the tail index is 1 - sd^2; 2,000 draws fall short of it by up to 0.1
        assert k(scale) == pytest.approx(1 - scale**2, abs=0.15)
    assert k(0.95) < 0.3
    assert tail_shape(100 * np.random.default_rng(0).standard_normal(200)) > 2  # one draw outweighs all others
    assert tail_shape(1000 * np.random.default_rng(0).standard_normal(200)) == np.inf
    assert usable(100) == 0.5 and usable(10**6) == 0.7


def test_ratios_are_prior_times_all_training_cells_over_the_guide(linear: Fit, screen: Screen) -> None:
    """The density of the cells written out as a normal law of every condition, at the draws of the guide."""
    guide = linear.modules()[1]
    rows, held_out = training_rows(screen, Restart(linear.trained[0].guide, 0), linear.settings)
    assert len(rows) + len(held_out) == screen.n_cells and len(held_out) > 5
    found, sites = log_ratios(guide, screen, rows, 5, 3), draw_sites(guide, 5, 3)
    story = guide.story
    x, condition = torch.as_tensor(screen.expression.toarray()[rows]), torch.as_tensor(screen.condition[rows])
    for row in range(5):
        values = {name: torch.as_tensor(sites.values[name][row]).reshape(site["value"].shape) for name, site in _stated(story)}
        with torch.no_grad(), poutine.block(), poutine.condition(data=values):
            g = story.globals()
            carry = torch.linalg.inv(torch.eye(2) - g.graph).T
            own, v = carry @ story.decoder.responsive, story.noise_variance(g.log_variance, story.design)
            background, total = story.decoder.background + g.coupling @ own, 0.0
            for c in range(len(screen.conditions)):
                law = torch.distributions.MultivariateNormal(
                    (story.decoder.intercept[0] + g.shift[c] @ own + g.residual[c]).double(),
                    (background.T @ background + own.T @ torch.diag(v[c]) @ own + torch.diag(g.noise.square())).double(),
                )
                total += float(law.log_prob(x[condition == c].double()).sum())
        expected = total + sites.log_prior[row] - sites.log_q[row]
        assert found[row] == pytest.approx(expected, abs=0.01)  # single precision of the globals, 200 cells of 12 genes


def _stated(story: torch.nn.Module) -> list[tuple[str, dict[str, torch.Tensor]]]:
    with poutine.block(), poutine.trace() as drawn:
        story.globals()  # type: ignore[operator]
    return [(name, node) for name, node in drawn.trace.nodes.items() if node["type"] == "sample" and not node.get("is_observed")
            and "Subsample" not in type(node["fn"]).__name__]  # fmt: skip


def test_a_guide_that_was_moved_away_is_farther(linear: Fit, screen: Screen) -> None:
    state = dict(linear.state)
    state["guide.family.loc.noise"] = state["guide.family.loc.noise"] + 0.5
    state["guide.family.log_scale.noise"] = state["guide.family.log_scale.noise"] + 1.0
    moved = replace(linear, trained=(replace(linear.trained[0], state=state),))
    one, other = linear.pareto_k(screen, 100), moved.pareto_k(screen, 100)
    assert np.isfinite(one) and other > one + 1


def test_diagnosis_has_pareto_k_where_cells_integrate_out_and_says_why_not_elsewhere(
    linear: Fit, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "DRAWS", 50)

    def said(one: Fit, data: Screen | None) -> str:
        return next(str(f) for f in one.diagnose(data) if f.topic == "nearness to the exact posterior")

    assert f"Pareto k of all globals is {linear.pareto_k(screen, 50):.1f}" in said(linear, screen)
    assert "it takes the cells" in said(linear, None)
    nonlinear = replace(linear, model=LINEAR.replace(likelihood=Gaussian()))
    points = replace(linear, guide=Map(), trained=(replace(linear.trained[0], guide=Map()),))
    for other, data, why in ((nonlinear, screen, "identity"), (points, screen, "at points"),
                             (linear, screen.restrict(["control", "T01"]), "other conditions"),
                             (linear, screen.cells(np.arange(1, screen.n_cells)), "numbers of cells")):  # fmt: skip
        with pytest.raises(InputError, match=why):
            other.pareto_k(data)


def test_every_member_of_an_ensemble_is_judged_on_its_own_cells(screen: Screen) -> None:
    guide = Ensemble(2, resample=True)
    both = fit(LINEAR, screen, guide=guide, settings=FitSettings(epochs=1), device="cpu", progress=False)
    plan = restarts(guide, both.seed)
    own = [tail_shape(log_ratios(one.modules()[1], screen, training_rows(screen, run, both.settings)[0], 50, 0))
           for one, run in zip(both.members, plan, strict=True)]  # fmt: skip
    assert both.pareto_k(screen, 50) == max(own) and own[0] != own[1]
