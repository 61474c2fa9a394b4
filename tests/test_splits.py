"""Splits: by condition, independent of order and of what else is in the file, and said in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings

from pvae_pyro.errors import InputError
from pvae_pyro.labels import CONTROL
from pvae_pyro.screen import Screen, read_conditions, split_screen, validation_slice

LABELS = ["ctrl", "A", "B", "C", "A+B", "C+B", "A+D", "D+E", "A+B+C", "A+B+D"]
SINGLES = (CONTROL, "A", "B", "C")


def screen_of(labels: Sequence[str], seed: int = 0) -> Screen:
    """One cell a label, in the order given."""
    counts = np.random.default_rng(seed).poisson(2.0, (len(labels), 6)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame({"label": list(labels)}, index=[f"c{cell}" for cell in range(len(labels))])
    return Screen.from_anndata(anndata.AnnData(sp.csr_matrix(counts), obs=obs), "label")


@pytest.fixture(scope="module")
def screen() -> Screen:
    return screen_of(LABELS * 12)


def refusal(screen: Screen, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        split_screen(screen, *arguments, **options)
    message = str(error.value)
    assert message.endswith(".") and not re.search(r"[.!?] |\n", message), message
    return message


def test_every_cell_is_on_one_side(screen: Screen) -> None:
    for options in (
        {"train": "singles"},
        {"hold_out": ["B+A", "C"]},
        {"fraction": 0.5},
        {"train": ["A", "A+B"]},
    ):
        split = split_screen(screen, **options)  # type: ignore[arg-type]
        assert split.held_out is not None
        assert set(split.train.conditions).isdisjoint(split.held_out.conditions)
        assert {*split.train.conditions, *split.held_out.conditions} == set(screen.conditions)
        assert split.train.n_cells + split.held_out.n_cells == screen.n_cells
        assert split.train.conditions[0] == CONTROL


def test_named_splits(screen: Screen) -> None:
    singles = split_screen(screen, "singles")
    assert singles.train.conditions == SINGLES and singles.train.targets == ("A", "B", "C")
    whole = split_screen(screen)
    assert whole.held_out is None and whole.train.conditions == screen.conditions
    assert "Nothing is held out" in whole.describe() and whole.table().empty
    held = split_screen(screen, hold_out=["B,A", "D_E", "C"]).held_out
    assert held is not None and held.conditions == ("C", "A+B", "D+E")
    listed = split_screen(screen, train=["B+A", "A", "C"], hold_out=["C"])
    assert listed.train.conditions == (CONTROL, "A", "A+B")


def test_table_says_what_training_knows_of_the_targets(screen: Screen) -> None:
    split = split_screen(screen, train=["A", "B", "B+C"])
    table = split.table().set_index("condition")
    assert list(split.table().columns[:4]) == ["condition", "n_cells", "targets_seen", "stratum"]
    assert (table["n_cells"] == 12).all()
    assert table["stratum"].to_dict() == {
        "C": "seen",
        "A+B": "both seen",
        "A+D": "one unseen",
        "D+E": "both unseen",
        "A+B+C": "all seen",
        "A+B+D": "one unseen",
    }
    assert table["targets_seen"].to_dict() == {"C": 1, "A+B": 2, "A+D": 1, "D+E": 0, "A+B+C": 3, "A+B+D": 2}
    assert table.loc["A+B+C", "as_single"] == "A,B" and table.loc["A+B+C", "in_combination"] == "B,C"
    said = split.describe()
    assert "1 control, 2 singles, 1 combination" in said and "D+E" in said and "1 both unseen" in said


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 1.0])
def test_a_fraction_of_the_combinations(screen: Screen, fraction: float) -> None:
    held = split_screen(screen, fraction=fraction, seed=1).held_out
    assert held is not None
    assert len(held.conditions) == max(1, round(fraction * 6)) and min((held.design != 0).sum(1)) >= 2
    again = split_screen(screen_of(LABELS[::-1] * 3, seed=5), fraction=fraction, seed=1).held_out
    assert (
        again is not None and again.conditions == held.conditions
    )  # order and number of cells do not matter
    apart = split_screen(screen, hold_out=["A+B"], fraction=fraction, seed=1)
    assert "A+B" not in apart.train.conditions


def test_other_seeds_hold_out_other_combinations(screen: Screen) -> None:
    drawn = {split_screen(screen, fraction=0.5, seed=seed).train.conditions for seed in range(8)}
    assert len(drawn) > 3


def test_bad_splits_are_refused(screen: Screen) -> None:
    assert "'all', 'singles'" in refusal(screen, "single")
    assert "'A+C'" in refusal(screen, hold_out=["C+A"])  # known targets, no cells
    assert "'F'" in refusal(screen, hold_out=["A+F"])
    assert "'D'" in refusal(screen, train=["D"])
    assert "twice" in refusal(screen, hold_out=["A+B", "B+A"])
    assert "control" in refusal(screen, hold_out=["ctrl"])
    assert "no perturbation" in refusal(screen, train=["A"], hold_out=["A"])
    assert "no perturbation" in refusal(screen, train=[])
    assert "no combination" in refusal(screen, "singles", fraction=0.5)
    for fraction in (0.0, -1.0, 1.5, float("nan")):
        assert "fraction" in refusal(screen, fraction=fraction)
    assert "no control" in refusal(screen.restrict(["A", "B"]))


def test_read_conditions(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\ufeffA+B\r\n\r\n# a remark\n  C \n", encoding="utf-8")
    assert read_conditions(path) == read_conditions(str(path)) == ["A+B", "C"]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for wrong in (tmp_path / "empty.txt", tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(InputError, match="conditions"):
            read_conditions(wrong)


SIZES = st.dictionaries(st.sampled_from(["A", "B", "A+B", "C", "B+C"]), st.integers(1, 30), min_size=1)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SIZES, st.floats(0, 1, exclude_max=True), st.integers(0, 5), st.randoms())
def test_validation_slice(sizes: dict[str, int], fraction: float, seed: int, random: Any) -> None:
    labels = ["ctrl"] * 7 + [name for name, n in sizes.items() for _ in range(n)]
    random.shuffle(labels)
    screen = screen_of(labels)
    train, held = validation_slice(screen, fraction, seed)
    assert train.dtype == held.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    own = np.bincount(screen.condition, minlength=len(screen.conditions))
    taken = np.bincount(screen.condition[held], minlength=len(screen.conditions))
    assert (taken < own).all()  # no condition is emptied
    assert (np.abs(taken - fraction * own) <= 1).all()
    assert fraction > 0 or not len(held)


def test_validation_share_is_right_on_average_in_small_conditions() -> None:
    labels = ["ctrl"] * 3 + [f"T{place}" for place in range(600) for _ in range(3)]
    _, held = validation_slice(screen_of(labels), 0.1, seed=0)
    # 601 independent draws of mean 0.3: standard deviation of the sum is 11
    assert abs(len(held) - 0.3 * 601) < 45


def test_a_conditions_validation_cells_do_not_depend_on_other_conditions(screen: Screen) -> None:
    few = screen.restrict(["control", "A+B"])
    _, held_all = validation_slice(screen, 0.3, seed=2)
    _, held_few = validation_slice(few, 0.3, seed=2)
    chosen = screen.cells(held_all).restrict(["control", "A+B"])
    assert np.array_equal(chosen.expression.toarray(), few.cells(held_few).expression.toarray())
    assert not np.array_equal(held_all, validation_slice(screen, 0.3, seed=3)[1])
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError):
            validation_slice(screen, share, seed=0)


def test_real_pairs(shared_data: Callable[[str], Path]) -> None:
    """The five pairs of which both singles were measured, from the data's own documentation."""
    split = split_screen(Screen.from_anndata(shared_data("norman_cells.h5ad"), "condition"), "singles")
    table = split.table()
    assert table.loc[table["stratum"] == "both seen", "condition"].tolist() == [
        *("KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2")
    ]
    assert len(table) == 15 and len(split.train.conditions) == 19
