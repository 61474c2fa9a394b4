"""What a request is told about itself, and how near a guide is to the exact posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pvae_pyro.inference import Fit
from pvae_pyro.prediction.extrapolation import distances
from pvae_pyro.prediction.importance import tail_shape

FitOf = Callable[..., Fit]


def levels(fit: Fit, conditions: list[str]) -> dict[str, str]:
    return {one.topic: one.level for one in fit.predict(conditions, draws=20).diagnose()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_request_near_training_is_fine_and_others_are_told(fitted: FitOf) -> None:
    fit = fitted()
    assert levels(fit, ["T01", "T02"]) == {"distance from training": "fine"}
    assert levels(fit, ["T01+X1", "T02"])["untrained targets"] == "do not trust"
    assert levels(fit, ["T01+T02+T03"])["more targets than trained"] == "look"
    assert "more targets than trained" not in levels(fitted(singles=True), ["T01+T02"])  # combinations are what it is for


def test_relative_shift_is_that_of_the_effects(fitted: FitOf) -> None:
    fit = fitted()
    names = [c for c in fit.conditions if "+" not in c and c != "control"]
    table = distances(fit.predict([*names, "T01+T02+T03+T04+T05"], draws=30)).set_index("condition")
    assert table.loc[names, "trained"].all() and not table["trained"].iloc[-1]
    w = fit.effects_table(draws=30).pivot(index="target", columns="latent", values="mean")
    length = np.linalg.norm(w.to_numpy() * fit.state["story.unit"].numpy(), axis=1)
    found = table.loc[list(w.index.intersection(names)), "shift"]
    expected = dict(zip(w.index, length, strict=True))
    np.testing.assert_allclose(found, [expected[name] for name in found.index], rtol=0.05)
    assert table.loc[names, "relative"].max() <= 1 + 1e-6
    ratio = table["shift"] / table["relative"]
    np.testing.assert_allclose(ratio, ratio.iloc[0], rtol=1e-5)


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


def test_ratios_are_of_the_draws_that_predictions_use(fitted: FitOf) -> None:
    """A guide moved away from the data has a larger k: densities and draws belong together."""
    fit = fitted()
    state = dict(fit.state)
    name = "guide.family.loc.effects"
    state[name] = state[name] + 2 * torch.ones_like(state[name])
    moved = replace(fit, trained=(replace(fit.trained[0], state=state),))
    assert np.isfinite(fit.pareto_k(draws=100)) and moved.pareto_k(draws=100) > fit.pareto_k(draws=100)
