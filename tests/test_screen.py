"""Screen: cells, conditions, genes and doses are right to the last bit, and the shared files read as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pvae_pyro.errors import InputError
from pvae_pyro.labels import CONTROL
from pvae_pyro.screen import Screen, split_screen

pytestmark = pytest.mark.filterwarnings("error")

LABELS = ["ctrl", "A", "B", "C", "A+B", "C+B", "A+B+C"]


def example(cells: int = 210, genes: int = 12, seed: int = 0, labels: list[str] = LABELS) -> anndata.AnnData:
    """Poisson counts, labels in turn, two batches and a donor."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, genes), (cells, genes)).astype(np.float32)
    counts[:, 0] += 1  # no cell without a count
    obs = pd.DataFrame(
        {
            "label": [labels[cell % len(labels)] for cell in range(cells)],
            "batch": rng.integers(1, 3, cells),
            "donor": pd.Categorical(np.array(["x", "donor y"])[rng.integers(0, 2, cells)]),
        },
        index=[f"cell{cell}" for cell in range(cells)],
    )
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(genes)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix)


def bits(screen: Screen) -> dict[str, object]:
    """Every array of a screen with its type, shape and bytes, and every name."""
    arrays: dict[str, np.ndarray] = {
        "library": screen.library,
        "genes": screen.genes,
        "design": screen.design,
        "condition": screen.condition,
        "batch": screen.batch,
        **{f"covariate {key}": values for key, values in screen.covariates.items()},
    }
    for name, matrix in (("expression", screen.expression), ("counts", screen.counts)):
        if matrix is not None:
            arrays |= {f"{name} {part}": getattr(matrix, part) for part in ("data", "indices", "indptr")}
    held: dict[str, object] = {
        name: (value.dtype.str, value.shape, value.tobytes()) for name, value in arrays.items()
    }
    names = {name: getattr(screen, name) for name in ("targets", "conditions", "batches", "scale")}
    return held | names | {"counts": screen.counts is None, "shape": screen.expression.shape}


def refusal(data: object, key: str = "label", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        Screen.from_anndata(data, key, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and not re.search(r"[.!?] ", message), message
    assert error.value.__cause__ is None
    return message


def test_shapes_order_and_values() -> None:
    data = example()
    screen = Screen.from_anndata(data, "label", batch_key="batch", covariate_keys=["donor"])
    counts = dense(data.X).astype(np.float64)
    assert (len(screen), screen.n_cells, screen.n_genes) == (210, 210, 12)
    assert screen.conditions == (CONTROL, "A", "B", "C", "A+B", "B+C", "A+B+C")
    assert screen.targets == ("A", "B", "C")
    assert screen.scale == "counts" and screen.counts is not None
    assert screen.expression.dtype == screen.counts.dtype == screen.design.dtype == np.float32
    assert np.array_equal(screen.library, counts.sum(1)) and screen.library.dtype == np.float64
    assert np.array_equal(dense(screen.counts), counts)
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(dense(screen.expression), expected, rtol=1e-6)
    assert [screen.conditions[code] for code in screen.condition[:7]] == [
        *(CONTROL, "A", "B", "C", "A+B", "B+C", "A+B+C")
    ]
    assert np.array_equal(
        screen.design, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]]
    )
    assert [screen.batches[code] for code in screen.batch] == data.obs["batch"].astype(str).tolist()
    assert screen.covariates["donor"].tolist() == data.obs["donor"].tolist()
    table = screen.condition_table()
    assert table["condition"].tolist() == list(screen.conditions)
    assert table["n_cells"].tolist() == [30] * 7 and table["n_targets"].tolist() == [0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pd.Categorical(["", "b", "a", "", "b", "a"], categories=["zz", "b", "a", ""]), (CONTROL, "a", "b")),
        (np.array(["NT", b"b", " a", "ctrl", "b", "a "], dtype=object), (CONTROL, "a", "b")),
        ([0, 7, 12, 0, 7, 12], (CONTROL, "12", "7")),
        ([0.0, 7.0, 12.0, 0.0, 7.0, 12.0], (CONTROL, "12", "7")),
        (pd.array(["NT", "b", "a"] * 2, dtype="string"), (CONTROL, "a", "b")),
    ],
)
def test_labels_of_any_type(values: Any, names: tuple[str, ...]) -> None:
    data = example(6)
    data.obs["kind"] = pd.Series(values, index=data.obs.index)
    numbers = not isinstance(values, list)
    screen = Screen.from_anndata(data, "kind", control_label=None if numbers else "0")
    assert screen.conditions == names
    assert screen.condition_table()["n_cells"].tolist() == [2, 2, 2]
    assert screen.condition.tolist()[0] == screen.condition.tolist()[3] == 0


def test_pooled_controls_and_other_findings_are_said() -> None:
    data = example(labels=["NT", "ctrl", "A", "HLA_B"])
    data.X = dense(data.X)
    data.X[[4, 6]] = 0
    screen = Screen.from_anndata(data, "label")
    said = " ".join(screen.notices)
    assert screen.conditions == (CONTROL, "A", "HLA_B")
    assert "pooled: 'NT', 'ctrl'" in said and "'HLA_B'" in said and "raw counts" in said
    assert "2 cells without a single count were dropped" in said and len(screen) == 208
    chosen = Screen.from_anndata(data, "label", control_label="NT")
    assert "ctrl" in chosen.conditions and "'ctrl' is read as a target" in " ".join(chosen.notices)
    for notice in screen.notices + chosen.notices:
        assert notice.endswith(".") and not re.search(r"[.!?] ", notice)


def test_doses() -> None:
    data = example(9, labels=["ctrl", "A", "B+A"])
    data.obs["dose"] = ["", "0.5", "1+2", "x", "1", "1+2.0", None, "0.50", "3"]
    screen = Screen.from_anndata(data, "label", dose_key="dose")
    assert screen.conditions == (CONTROL, "A", "A@0.5", "A@2+B", "A@3+B@3")
    assert np.array_equal(screen.design, np.array([[0, 0], [1, 0], [0.5, 0], [2, 1], [3, 3]], np.float32))
    assert screen.condition.tolist() == [0, 2, 3, 0, 1, 3, 0, 2, 4]
    data.obs["dose"] = [0.0, 0.5, 1.5] * 3
    numeric = Screen.from_anndata(data, "label", dose_key="dose")
    assert numeric.conditions == (CONTROL, "A@0.5", "A@1.5+B@1.5")
    padded = example(6, labels=["ctrl+ctrl", "A+ctrl", "ctrl+A", "B+A", "B,A"][:4] + ["A+ctrl"] * 2)
    padded.obs["dose"] = ["1+1", "2+1", "1+2", "1+4", "0+1", "2"]
    screen = Screen.from_anndata(padded, "label", dose_key="dose")
    assert screen.conditions == (CONTROL, "A@2", "A@4+B")
    assert screen.condition_table()["n_cells"].tolist() == [2, 3, 1]


@pytest.mark.parametrize("dose", ["1+2+3", "-1", "one", None, "nan", "inf", ""])
def test_doses_that_do_not_fit_are_refused(dose: object) -> None:
    data = example(9, labels=["ctrl", "A", "B+A"])
    data.obs["dose"] = pd.Series(["1", "1", dose] * 3, index=data.obs.index, dtype=object)
    assert "'B+A'" in refusal(data, dose_key="dose")


def test_training_screen_equals_the_file_without_doubles(tmp_path: Path) -> None:
    """The contract of --train singles, also with the longest names and levels among the doubles."""
    data = example(labels=["", "A", "B", "HLA_C", "A,B", "B,LONGEST_NAME", "A,B,HLA_C"])
    double = data.obs["label"].str.contains(",").to_numpy()
    donors = data.obs["donor"].astype(str)
    donors[double] = "a donor with a very long name"
    data.obs["donor"] = donors
    data.obs.loc[double & (data.obs["batch"] == 1), "batch"] = 12345
    data.X = dense(data.X)
    data.X[[1, 5]] = 0
    data.write_h5ad(tmp_path / "all.h5ad")
    data[~double].copy().write_h5ad(tmp_path / "singles.h5ad")
    options: dict[str, Any] = {"batch_key": "batch", "covariate_keys": ["donor"]}
    whole = split_screen(Screen.from_anndata(tmp_path / "all.h5ad", "label", **options), "singles").train
    alone = Screen.from_anndata(tmp_path / "singles.h5ad", "label", **options)
    assert bits(whole) == bits(alone)
    assert whole.choose_genes(5).tolist() == alone.choose_genes(5).tolist()
    genes = alone.choose_genes(5).tolist()
    assert bits(whole.select_genes(genes)) == bits(alone.select_genes(genes))
    held, expected = whole.summary().arrays(), alone.summary().arrays()
    assert all(held[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize(
    ("file", "key", "batch", "separator", "cells", "conditions", "controls"),
    [
        ("norman_cells.h5ad", "condition", None, "+", 3375, 34, 100),
        ("papalexi_cells.h5ad", "target", "replicate", None, 17506, 26, 2050),
        ("norman_semisynthetic.h5ad", "guide_ids", "gemgroup", ",", 33138, 181, 4000),
    ],
)
def test_shared_files(
    shared_data: Callable[[str], Path],
    tmp_path: Path,
    file: str,
    key: str,
    batch: str | None,
    separator: str | None,
    cells: int,
    conditions: int,
    controls: int,
) -> None:
    path = shared_data(file)
    screen = Screen.from_anndata(path, key, batch_key=batch)
    data = anndata.read_h5ad(path)
    assert (screen.n_cells, len(screen.conditions), screen.scale) == (cells, conditions, "counts")
    assert screen.convention.separator == separator and screen.conditions[0] == CONTROL
    assert screen.condition_table()["n_cells"].tolist()[0] == controls
    assert len(screen.batches) == (1 if batch is None else data.obs[batch].nunique())
    labels = data.obs[key].astype(str).replace(screen.convention.control_labels[0], CONTROL)
    expected = labels.map(lambda text: "+".join(sorted(text.split(separator))) if separator else text)
    assert np.array_equal(np.array(screen.conditions)[screen.condition], expected.to_numpy())
    assert np.array_equal(screen.library, np.asarray(data.X.sum(1)).ravel())
    if separator:
        double = data.obs[key].astype(str).str.contains(separator, regex=False).to_numpy()
        data[~double].copy().write_h5ad(tmp_path / "singles.h5ad")
        alone = Screen.from_anndata(tmp_path / "singles.h5ad", key, batch_key=batch)
        assert bits(split_screen(screen, "singles").train) == bits(alone)


@pytest.mark.parametrize("separator", ["_", ",", "|", ";"])
def test_real_labels_in_other_conventions(shared_data: Callable[[str], Path], separator: str) -> None:
    data = anndata.read_h5ad(shared_data("norman_cells.h5ad"))
    expected = bits(Screen.from_anndata(data, "condition"))
    data.obs["other"] = [
        "non_targeting" if label == "control" else separator.join(reversed(label.split("+")))
        for label in data.obs["condition"].astype(str)
    ]
    if separator == "_":  # CEBPE_RUNX1T1 may be a gene: neither stands alone in this file
        assert "--separator" in refusal(data, "other")
    given = separator if separator == "_" else None
    assert bits(Screen.from_anndata(data, "other", separator=given)) == expected


def test_cells_and_restrict() -> None:
    data = example()
    screen = Screen.from_anndata(data, "label", batch_key="batch", covariate_keys=["donor"])
    mask = np.isin(np.arange(210) % 7, [1, 5])
    part = screen.cells(mask)
    assert part.conditions == ("A", "B+C") and part.targets == ("A", "B", "C")
    assert bits(part) == bits(screen.cells(np.flatnonzero(mask))) == bits(screen.restrict(["C+B", "A"]))
    assert np.array_equal(dense(part.counts), dense(data.X)[mask])
    assert np.array_equal(part.design, [[1, 0, 0], [0, 1, 1]])
    only = screen.cells([7, 1, 1])
    assert (
        only.conditions == (CONTROL, "A") and only.targets == ("A",) and only.condition.tolist() == [0, 1, 1]
    )
    assert np.array_equal(dense(only.counts), dense(data.X)[[7, 1, 1]])
    batch_two = screen.cells(data.obs["batch"].to_numpy() == 2)
    assert batch_two.batches == ("2",) and not batch_two.batch.any()
    empty = screen.cells(np.zeros(210, dtype=bool))
    assert len(empty) == 0 and empty.conditions == empty.targets == ()
    with pytest.raises(InputError, match="'A.C'"):
        screen.restrict(["A+C"])


def test_genes_are_chosen_by_the_variance_of_this_screens_cells(tmp_path: Path) -> None:
    data = example(genes=40)
    counts = dense(data.X)
    counts[np.arange(210) % 7 >= 4, 7] = 500  # varies most, but only among combinations
    data.X = counts
    screen = Screen.from_anndata(data, "label")
    train = split_screen(screen, "singles").train
    for one in (screen, train):
        variance = dense(one.expression).astype(np.float64).var(axis=0)
        expected = [f"g{place}" for place in sorted(np.argsort(-variance)[:6])]
        assert one.choose_genes(6).tolist() == one.choose_genes("6").tolist() == expected
    assert "g7" in screen.choose_genes(6) and "g7" not in train.choose_genes(6)
    assert train.choose_genes().tolist() == train.choose_genes("all").tolist() == data.var_names.tolist()
    assert train.choose_genes(10**6).size == 40
    listed = tmp_path / "genes.txt"
    listed.write_text("g9\n\n# mine\ng2\n")
    assert train.choose_genes(listed).tolist() == train.choose_genes(str(listed)).tolist() == ["g2", "g9"]
    some = train.select_genes(["g9", "g2"])
    assert np.array_equal(dense(some.expression), dense(train.expression)[:, [9, 2]])
    assert np.array_equal(dense(some.counts), dense(train.counts)[:, [9, 2]])
    assert np.array_equal(some.library, train.library)


def test_more_than_the_default_number_of_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvae_pyro.screen.DEFAULT_GENES", 5)
    screen = Screen.from_anndata(example(), "label")
    assert screen.choose_genes(None).tolist() == screen.choose_genes(5).tolist() and screen.n_genes == 12


def test_bad_gene_choices_are_refused(tmp_path: Path) -> None:
    screen = Screen.from_anndata(example(), "label")
    (tmp_path / "wrong.txt").write_text("g1\ng77\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("g1\ng1\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    bad: list[Any] = [0, -3, "0", True, tmp_path, *tmp_path.iterdir(), tmp_path / "nowhere.txt", "al"]
    for spec in bad:
        with pytest.raises(InputError) as error:
            screen.choose_genes(spec)
        assert not re.search(r"[.!?] |\n", str(error.value))


def test_missing_controls_and_perturbations_are_refused() -> None:
    assert "'A'" in refusal(example(labels=["A", "B"]))
    assert "every cell" in refusal(example(labels=["NT", "ctrl"]))
    assert "frequent labels are 'A', 'B'" in refusal(
        example(labels=["A", "B", "B", "A", "C"]), control_label="x"
    )
    data = example(labels=["ctrl", "A", "A"])
    data.X = dense(data.X)
    data.X[::3] = 0
    assert "no control" in refusal(data)
    data.X[:] = 0
    assert "single count" in refusal(data)
    test = Screen.from_anndata(
        example(labels=["A", "A+B"]), "label", require_control=False, control_label="x"
    )
    assert test.conditions == ("A", "A+B")


def test_labels_that_differ_in_case_only_are_told() -> None:
    labels = ["ctrl", "Gata1", "GATA1", "Spi1"]
    told = " ".join(Screen.from_anndata(example(labels=labels), "label").notices)
    assert "'GATA1'" in told and "'Gata1'" in told and "case only" in told
    assert "case only" not in " ".join(Screen.from_anndata(example(labels=["ctrl", "Gata1", "Spi1"]), "label").notices)
