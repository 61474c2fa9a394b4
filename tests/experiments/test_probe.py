"""The probe finds labels that are there, none that are not, and no representation but the circular one depends on the label."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import pvae_pyro as pv
from experiments.probe.arms import cut
from experiments.probe.probing import chance, cross_validated, scores
from experiments.probe.representations import (
    BACKGROUND,
    HIDDEN_RESPONSIVE,
    NOISE,
    PCA_FEW,
    PCA_MANY,
    RESPONSIVE,
    TOLD,
    latents,
    without_model,
)


@cache
def screen() -> pv.Screen:
    sizes = {"targets": 6, "doubles": 0, "controls": 80, "cells_per_condition": 30, "genes": 40}
    return pv.Screen.from_anndata(pv.simulate.simulate(seed=2, **sizes).adata, "condition", batch_key="batch")


@cache
def fitted() -> pv.Fit:
    model = pv.PerturbedVAE(responsive=3, background=2, hidden=4)
    return pv.fit(model, cut(screen(), 0)[0], settings=pv.FitSettings(epochs=1), device="cpu", progress=False)


def test_probe_of_separate_and_of_equal_groups() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(8), [10, 200, 30, 40, 50, 60, 70, 80])
    apart = 50.0 * np.eye(8)[y] + rng.normal(size=(len(y), 8))
    found = scores(apart, y, apart, y, 0)
    assert found["balanced_accuracy"] == found["top_1"] == found["top_5"] == 1.0
    assert found["floor_balanced_accuracy"] < 0.35 and cross_validated(apart, y, 0) == 1.0
    noise, more = rng.normal(size=(2, len(y), 3))
    empty = scores(noise, y, more, y, 0)
    assert empty["balanced_accuracy"] == pytest.approx(1 / 8, abs=0.08)
    assert chance(y) == {"balanced_accuracy": 1 / 8, "top_1": 1 / 8, "top_5": 5 / 8}


def test_balanced_accuracy_is_a_mean_over_labels() -> None:
    """One feature, two places: label 2 sits where label 0 is, so that 0 and 1 are named right and 2 never, or the reverse."""
    y = np.array([0] * 90 + [1] * 60 + [2] * 30)
    x = np.where(y == 1, 1.0, -1.0)[:, None]
    found = scores(x, y, x, y, 0)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["top_1"] in (pytest.approx(150 / 180), pytest.approx(90 / 180))


def test_only_the_circular_representation_depends_on_the_label() -> None:
    """Cells with each other's labels: what is encoded without them must not move."""
    fit, test = fitted(), cut(screen(), 0)[1]
    labels = np.random.default_rng(1).permutation(test.condition)
    one, other = latents(fit, test), latents(fit, replace(test, condition=labels))
    moved = labels != test.condition
    for name in (BACKGROUND, RESPONSIVE, HIDDEN_RESPONSIVE):
        np.testing.assert_array_equal(one[name], other[name])
    for name in (TOLD, NOISE):
        assert np.abs(one[name] - other[name])[moved].max() > 0.05
        np.testing.assert_allclose(one[name][~moved], other[name][~moved], atol=1e-5)
    control = test.condition == test.conditions.index("control")
    np.testing.assert_allclose(one[TOLD][control], one[RESPONSIVE][control], atol=1e-5)


def test_axes_without_a_model_come_from_training_cells() -> None:
    train, test = cut(screen(), 0)
    made, new = without_model(train, test, 3, 5)
    some, few = without_model(train, test.cells(np.arange(20)), 3, 5)
    for name in made:
        np.testing.assert_array_equal(made[name], some[name])
        np.testing.assert_allclose(new[name][:20], few[name], atol=1e-4)
    assert made[PCA_FEW].shape[1] == 3 and made[PCA_MANY].shape[1] == 5
    spread = made[PCA_MANY].var(0)
    assert (np.diff(spread) <= 1e-5).all()  # largest first


def test_no_cell_is_on_both_sides_and_each_condition_gives_a_fifth() -> None:
    train, test = cut(screen(), 3)
    assert train.n_cells + test.n_cells == screen().n_cells and train.conditions == test.conditions
    for i, name in enumerate(screen().conditions):
        n = (screen().condition == i).sum()
        assert abs((test.condition == test.conditions.index(name)).sum() - 0.2 * n) <= 1
