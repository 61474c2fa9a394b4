"""Cross-validation: folds partition the pairs, held-out cells cannot reach the training, scores are paired."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.cross_validation import (
    CrossValidation,
    Fold,
    condition_folds,
    cross_validate,
)
from pvae_pyro.evaluation.scores import METRICS
from pvae_pyro.inference import FitSettings
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.splits import split_screen
from pvae_pyro.story import NormalEffects, PerturbedVAE

pytestmark = pytest.mark.filterwarnings("error")

MODEL = PerturbedVAE(background=2, hidden=0)
SETTINGS = FitSettings(epochs=1, batch_size=128)
HOW: dict[str, Any] = {"settings": SETTINGS, "draws": 20, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def world() -> Any:
    """Simulated cells: control, 5 singles, 6 pairs, 30 genes."""
    return simulate(
        "default",
        seed=2,
        targets=5,
        doubles=6,
        controls=120,
        cells_per_condition=25,
        genes=30,
        responsive=3,
        background=2,
    ).adata


@pytest.fixture(scope="module")
def screen(world: Any) -> Screen:
    return Screen.from_anndata(world, "condition")


@pytest.fixture(scope="module")
def pairs(screen: Screen) -> list[str]:
    return [name for name in screen.conditions if "+" in name]


@pytest.fixture(scope="module")
def done(screen: Screen) -> CrossValidation:
    return cross_validate(MODEL, screen, 2, **HOW)


@pytest.mark.parametrize("folds", [2, 3, 4, 6])
def test_folds_partition_the_pairs_evenly(screen: Screen, pairs: list[str], folds: int) -> None:
    found = condition_folds(screen, folds)
    assert sorted(name for fold in found for name in fold) == sorted(pairs)
    sizes = [len(fold) for fold in found]
    assert len(sizes) == folds and max(sizes) - min(sizes) <= 1
    assert condition_folds(screen, folds) == found, "the seed decides"
    assert len({condition_folds(screen, folds, seed) for seed in range(8)}) > 1


def test_folds_do_not_depend_on_the_order_of_the_screen_and_may_be_of_anything(screen: Screen) -> None:
    turned = dataclasses.replace(
        screen,
        conditions=screen.conditions[::-1],
        design=screen.design[::-1],
        condition=len(screen.conditions) - 1 - screen.condition,
    )
    assert condition_folds(turned, 3) == condition_folds(screen, 3)
    singles = condition_folds(screen, 2, of="singles")
    assert sorted(name for fold in singles for name in fold) == sorted(screen.targets)
    some = list(screen.conditions[1:4])
    assert sorted(name for fold in condition_folds(screen, 3, of=some) for name in fold) == sorted(some)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"folds": 1}, "6 conditions cannot be held out in 1 folds"),
        ({"folds": 7}, "6 conditions cannot be held out in 7 folds"),
        ({"of": "doubles"}, "'combinations', 'singles' or a list"),
        ({"of": ["T01", "T01"], "folds": 2}, "listed twice"),
        ({"of": ["T99"], "folds": 2}, "T99"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(screen: Screen, how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        condition_folds(screen, **how)


def test_every_pair_is_scored_once_by_a_fit_that_trained_on_all_the_rest(
    done: CrossValidation, screen: Screen, pairs: list[str]
) -> None:
    assert [set(fold.held_out) for fold in done.folds] == [set(fold) for fold in condition_folds(screen, 2)]
    cells = screen.condition_table().set_index("condition")["n_cells"]
    for fold in done.folds:
        assert fold.training_cells == screen.n_cells - cells[list(fold.held_out)].sum()
        assert fold.mean.shape == fold.sd.shape == (len(fold.held_out), screen.n_genes)
        assert (fold.sd > 0).mean() > 0.9
    assert list(done.rows.columns[:4]) == ["fold", "condition", "metric", "value"]
    assert not done.rows.duplicated(["condition", "metric"]).any()
    assert set(done.rows["condition"]) == set(pairs) and set(METRICS) <= set(done.rows["metric"])
    assert set(done.rows["stratum"]) == {"both seen"}
    where = done.rows.drop_duplicates("condition").set_index("condition")["fold"]
    assert all(where[name] == number for number, fold in enumerate(done.folds, 1) for name in fold.held_out)


def test_times_are_recorded(done: CrossValidation) -> None:
    assert len(done.seconds) == 2
    assert all(fold.fit_seconds > 0 and fold.predict_seconds > 0 for fold in done.folds)
    assert done.seconds[1] == done.folds[1].fit_seconds + done.folds[1].predict_seconds


def test_held_out_cells_cannot_touch_the_training(done: CrossValidation, world: Any) -> None:
    poisoned = world.copy()
    held_out = done.folds[0].held_out
    rows = np.flatnonzero(poisoned.obs["condition"].isin(held_out))
    counts = poisoned.X.toarray()
    # wild genes and library sizes; what was measured is another story altogether
    counts[rows] = np.random.default_rng(0).poisson(500, size=(len(rows), counts.shape[1]))
    poisoned.X = type(poisoned.X)(counts)
    again = cross_validate(MODEL, Screen.from_anndata(poisoned, "condition"), [held_out], **HOW)
    np.testing.assert_array_equal(again.folds[0].mean, done.folds[0].mean)
    np.testing.assert_array_equal(again.folds[0].sd, done.folds[0].sd)
    assert again.folds[0].genes.tolist() == done.folds[0].genes.tolist()
    l2 = [
        one.rows[(one.rows["metric"] == "l2") & (one.rows["fold"] == 1)]["value"].mean()
        for one in (done, again)
    ]
    assert l2[1] > 2 * l2[0], "the poison must have reached the scores"


def test_genes_are_chosen_on_the_training_cells_of_each_fold(
    world: Any, screen: Screen, pairs: list[str]
) -> None:
    loud = world.copy()
    counts = loud.X.toarray()
    expected = split_screen(screen, hold_out=pairs[:1]).train.choose_genes(8)
    gene = int(np.flatnonzero(~np.isin(screen.genes, expected))[0])
    rows = np.flatnonzero(loud.obs["condition"].isin(pairs[:1]))
    counts[rows[::2], gene] = 10_000  # the most variable of all, but only where it is held out
    loud.X = type(loud.X)(counts)
    screen = Screen.from_anndata(loud, "condition")
    assert str(screen.genes[gene]) in screen.choose_genes(8), "a choice on all cells would fall for it"
    (fold,) = cross_validate(MODEL, screen, [pairs[:1]], genes=8, **HOW).folds
    assert fold.genes.tolist() == expected.tolist()


def test_splits_are_folds_too_and_a_function_may_bring_its_guide_and_settings(
    done: CrossValidation, screen: Screen
) -> None:
    calls = []

    def fresh() -> Any:
        calls.append(1)
        return MODEL, None, SETTINGS

    splits = (split_screen(screen, hold_out=fold.held_out) for fold in done.folds)
    again = cross_validate(
        fresh, screen, splits, **(HOW | {"settings": dataclasses.replace(SETTINGS, epochs=0)})
    )
    assert len(calls) == 2
    pd.testing.assert_frame_equal(again.rows, done.rows)


def test_a_target_without_a_trained_single_makes_another_stratum(screen: Screen) -> None:
    result = cross_validate(MODEL, screen, [["T01", "T01+T02"]], **HOW)
    strata = result.rows.drop_duplicates("condition").set_index("condition")["stratum"]
    assert strata.to_dict() == {"T01": "unseen", "T01+T02": "one unseen"}


def test_the_table_is_a_mean_and_a_standard_error_over_conditions(done: CrossValidation) -> None:
    table = done.table.set_index("metric")
    values = done.rows[done.rows["metric"] == "crps"]["value"]
    assert table.loc["crps", "mean"] == pytest.approx(values.mean())
    assert table.loc["crps", "standard_error"] == pytest.approx(values.std(ddof=1) / np.sqrt(6))
    assert table.loc["crps", "conditions"] == 6
    wide = done.rows.pivot(index="condition", columns="metric", values="value")
    above, below = wide["mse_ratio_numerator"], wide["mse_ratio_denominator"]
    assert table.loc["mse_ratio", "mean"] == pytest.approx(above.sum() / below.sum())
    # the linearised ratio against the spread of its own jackknife
    left_out = [(above.drop(name).sum() / below.drop(name).sum()) for name in wide.index]
    jackknife = np.sqrt(5 / 6 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert table.loc["mse_ratio", "standard_error"] == pytest.approx(jackknife, rel=0.35)
    text = str(done)
    assert "2 folds, 6 conditions held out; seconds per fold: " in text and "log_score" in text


def test_models_are_compared_pair_by_pair(done: CrossValidation, screen: Screen) -> None:
    same = done.compare(done, ("one", "two"))
    assert (same.table["difference"] == 0).all()
    assert "no difference beyond noise between one and two" in same.sentences[0]
    other = cross_validate(MODEL.replace(effects=NormalEffects()), screen, 2, **HOW)
    found = other.compare(done, ("normal", "spike-and-slab"))
    table = found.table.set_index("metric")
    assert (table["conditions"] == 6).all() and found.reference == "spike-and-slab"
    l2 = [one.rows[one.rows["metric"] == "l2"].set_index("condition")["value"] for one in (other, done)]
    assert table.loc["l2", "difference"] == pytest.approx((l2[0] - l2[1]).mean())
    expected = (l2[0] - l2[1]).std(ddof=1) / np.sqrt(6)
    assert table.loc["l2", "standard_error"] == pytest.approx(expected, rel=0.05)
    with pytest.raises(InputError, match="same splits"):
        done.compare(CrossValidation(done.rows, done.folds[:1]))
    with pytest.raises(InputError, match="two names"):
        done.compare(other, ("model", "model"))


def test_a_condition_held_out_by_several_folds_counts_once() -> None:
    keys = {"metric": "crps", "n_targets": 2, "seen": 2, "stratum": "both seen"}
    rows = pd.DataFrame(
        [
            {"fold": fold, "condition": name, "value": value} | keys
            for fold, name, value in [(1, "A+B", 1.0), (1, "C+D", 5.0), (2, "A+B", 3.0)]
        ]
    )
    fold = Fold(("A+B",), 10, 1.0, 1.0, np.array(["g"]), np.zeros((1, 1)), np.ones((1, 1)))
    table = CrossValidation(rows, (fold, fold)).table.iloc[0]
    assert (table["mean"], table["conditions"]) == (3.5, 2)  # of 2 and 5
    assert table["standard_error"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (1, "cannot be held out in 1 folds"),
        ([], "no fold to fit"),
        (["T01+T02"], "is one name"),
        ([["T01+T02"], []], "Fold 2 holds out nothing"),
        ([["control"]], "Fold 1 holds out control"),
        ([["T01+T02"], ["T98+T99"]], "T98"),
    ],
)
def test_what_cannot_be_held_out_is_refused_before_the_first_fit(
    screen: Screen, splits: Any, message: str
) -> None:
    def never() -> PerturbedVAE:
        raise AssertionError("a fold was begun")

    with pytest.raises(InputError, match=message):
        cross_validate(never, screen, splits, **HOW)


def test_a_split_that_holds_out_nothing_and_too_few_draws_are_refused(screen: Screen) -> None:
    with pytest.raises(InputError, match="Fold 1 holds out nothing"):
        cross_validate(MODEL, screen, [split_screen(screen)], **HOW)
    with pytest.raises(InputError, match="19 draws are too few"):
        cross_validate(MODEL, screen, 2, **(HOW | {"draws": 19}))
