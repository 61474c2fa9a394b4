"""What a request is told about itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pvae_pyro.inference import Fit
from pvae_pyro.prediction.extrapolation import distances

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
