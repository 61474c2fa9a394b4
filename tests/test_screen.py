"""Screen: what is read is right to the last bit, whatever the storage, and what cannot be used is refused."""

from __future__ import annotations

import re
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pvae_pyro import reading
from pvae_pyro.errors import InputError
from pvae_pyro.labels import CONTROL
from pvae_pyro.screen import ConditionSummary, Screen, split_screen

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


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "integers": lambda counts: sp.csr_matrix(counts.astype(np.int64)),
    "float64": lambda counts: counts.astype(np.float64),
}


def shuffled_csr(counts: np.ndarray) -> sp.csr_matrix:
    """Unsorted indices, stored zeros and doubled entries."""
    rows, columns = np.indices(counts.shape).reshape(2, -1)[:, ::-1]
    values = counts.reshape(-1)[::-1]
    halves = sp.coo_matrix(
        (np.concatenate([values - values // 2, values // 2]), (np.tile(rows, 2), np.tile(columns, 2))),
        counts.shape,
    )
    order = np.argsort(halves.row, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(halves.row, minlength=counts.shape[0]))])
    return sp.csr_matrix((halves.data[order], halves.col[order], indptr), counts.shape)


@pytest.mark.parametrize("form", [*FORMS, "shuffled"])
@pytest.mark.parametrize("place", ["X", "layer"])
def test_storage_does_not_matter(
    form: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any sparse or dense form, X or layer, in memory, on disk, backed or a view: the same bits."""
    monkeypatch.setattr(reading, "_BLOCK", 50)  # several blocks even here
    data = example()
    expected = bits(Screen.from_anndata(data, "label", batch_key="batch", covariate_keys=["donor"]))
    stored = (FORMS | {"shuffled": shuffled_csr})[form](dense(data.X))
    layer = None if place == "X" else "raw"
    if layer:
        data.layers[layer] = stored
        data.X = np.full(data.shape, 0.5, dtype=np.float32)
    else:
        data.X = stored
    options: dict[str, Any] = {"batch_key": "batch", "covariate_keys": ["donor"], "layer": layer}
    assert bits(Screen.from_anndata(data, "label", **options)) == expected
    path = tmp_path / "file.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write_h5ad(path)
        backed = anndata.read_h5ad(path, backed="r")
    assert bits(Screen.from_anndata(path, "label", **options)) == expected
    assert bits(Screen.from_anndata(str(path), "label", **options)) == expected
    assert bits(Screen.from_anndata(backed, "label", **options)) == expected
    assert backed.file.is_open  # the caller's file stays open
    backed.file.close()
    everything = data[np.arange(data.n_obs)]
    assert bits(Screen.from_anndata(everything, "label", **options)) == expected


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "float64", "shuffled"])
@pytest.mark.parametrize("scale", ["counts", "normalised"])
def test_the_callers_data_is_not_modified(form: str, scale: str) -> None:
    data = example()
    counts = dense(data.X) * np.float32(1 if scale == "counts" else 0.3)
    counts[3] = 0
    data.X = shuffled_csr(counts) if form == "shuffled" else FORMS[form](counts)
    stored = data.X
    parts = [part.copy() for part in _arrays(stored)]
    before = data.copy()
    Screen.from_anndata(data, "label", batch_key="batch").cells(slice(0, 50)).select_genes(["g3", "g1"])
    assert data.X is stored
    assert all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(parts, _arrays(stored), strict=True)
    )
    pd.testing.assert_frame_equal(data.obs, before.obs)
    screen = Screen.from_anndata(data, "label")
    held = bits(screen)
    for part in _arrays(stored):
        part[...] = 0
    assert bits(screen) == held  # nor does the screen hang on the caller's arrays


def _arrays(matrix: Any) -> list[np.ndarray]:
    return [matrix.data, matrix.indices, matrix.indptr] if sp.issparse(matrix) else [matrix]


def test_the_whole_matrix_is_never_dense() -> None:
    cells, genes = 3000, 30_000  # 360 MB if dense
    rng = np.random.default_rng(0)
    counts = sp.random(cells, genes, density=5e-4, random_state=rng, format="csc", dtype=np.float32)
    counts.data[:] = np.ceil(counts.data * 9)
    counts = counts + sp.csc_matrix((np.ones(cells), (np.arange(cells), np.zeros(cells, int))), counts.shape)
    data = anndata.AnnData(
        counts, obs=pd.DataFrame({"label": LABELS * 428 + LABELS[:4]}).set_index(_names(cells))
    )
    tracemalloc.start()
    screen = Screen.from_anndata(data, "label")
    split = split_screen(screen, "singles")
    genes_kept = split.train.choose_genes(100)
    split.train.select_genes(genes_kept)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert genes_kept.size == 100


def _names(cells: int) -> pd.Index:
    return pd.Index([f"c{cell}" for cell in range(cells)])


def test_a_dense_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 200_000)
    counts = np.zeros((4000, 1000), dtype=np.float32)  # 16 MB
    counts[:, :3] = np.random.default_rng(0).poisson(3.0, (4000, 3)) + 1
    data = anndata.AnnData(counts, obs=pd.DataFrame({"label": (LABELS * 572)[:4000]}).set_index(_names(4000)))
    data.write_h5ad(tmp_path / "dense.h5ad")
    tracemalloc.start()
    screen = Screen.from_anndata(tmp_path / "dense.h5ad", "label")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert np.array_equal(dense(screen.counts), counts)


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


def test_counts_and_normalised_are_told_apart() -> None:
    data = example()
    counts = dense(data.X)
    log = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    data.X = sp.csr_matrix(log)
    screen = Screen.from_anndata(data, "label")
    assert screen.scale == "normalised" and screen.counts is None and "normalised" in " ".join(screen.notices)
    assert np.array_equal(dense(screen.expression), log.astype(np.float32))
    assert np.array_equal(screen.library, np.ones(210))
    data.X = np.expm1(log) / 1e4 * counts.sum(1, keepdims=True)  # there and back in float32
    again = Screen.from_anndata(data, "label")
    assert again.scale == "counts" and np.array_equal(dense(again.counts), counts)
    data.X = counts
    assert Screen.from_anndata(data, "label", scale="normalised").scale == "normalised"
    data.X = counts + 0.25
    assert "large" not in " ".join(Screen.from_anndata(data, "label").notices)
    data.X = counts * 100.3
    assert "large" in " ".join(Screen.from_anndata(data, "label").notices)


def test_a_mixture_of_scales_is_refused_and_held_out_cells_do_not_choose_it() -> None:
    data = example()
    data.X = dense(data.X)
    double = (data.obs["label"] == "A+B").to_numpy()
    data.X[double] += 0.5
    assert "30 of 210 cells" in refusal(data)
    data.X[~double] += 0.5
    data.X[double] += 0.5
    assert Screen.from_anndata(data, "label").scale == "normalised"
    assert "180 of 210 cells" in refusal(data, scale="counts")
    assert "scale" in refusal(data, scale="log")


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


def test_summary_against_brute_force() -> None:
    labels = [*LABELS * 29, "A", "A", "A", "D"]  # D has one cell
    data = example(len(labels), labels=labels)
    screen = Screen.from_anndata(data, "label")
    summary = screen.summary(seed=3)
    values = dense(screen.expression).astype(np.float64)
    for row, condition in enumerate(summary.conditions):
        own = values[screen.condition == row]
        assert summary.n_cells[row] == len(own) == (1 if condition == "D" else 32 if condition == "A" else 29)
        np.testing.assert_allclose(summary.mean[row], own.mean(0), rtol=1e-12)
        expected = own.var(0, ddof=1) if len(own) > 1 else np.zeros(own.shape[1])
        np.testing.assert_allclose(summary.variance[row], expected, rtol=1e-10, atol=1e-14)
        n = len(own)
        if n == 1:
            assert np.isnan(summary.halves[:, row]).all()
            continue
        joined = (n // 2) * summary.halves[0, row] + (n - n // 2) * summary.halves[1, row]
        np.testing.assert_allclose(joined / n, own.mean(0), rtol=1e-12)
        assert not np.allclose(summary.halves[0, row], summary.halves[1, row])
    assert not np.allclose(screen.summary(seed=4).halves[:, 0], summary.halves[:, 0])
    again = screen.summary(seed=3)
    assert again.halves.tobytes() == summary.halves.tobytes()


def test_a_constant_gene_has_no_variance() -> None:
    data = example()
    data.X = np.full((210, 12), 0.1, dtype=np.float32)
    summary = Screen.from_anndata(data, "label").summary()
    assert np.allclose(summary.variance, 0, atol=1e-15) and (summary.variance >= 0).all()


def test_a_condition_is_summarised_whatever_else_is_there() -> None:
    screen = Screen.from_anndata(example(), "label")
    whole = screen.summary(seed=1)
    part = screen.restrict(["B+C", "A"]).summary(seed=1)
    taken = whole.restrict(["A", "C+B"])
    for name, value in part.arrays().items():
        assert value.dtype == taken.arrays()[name].dtype and value.tobytes() == taken.arrays()[name].tobytes()
    assert whole.restrict(["B+C", "A"]).conditions == ("B+C", "A")
    assert whole.index("C+B+A") == 6 and whole.restrict(["B"]).targets == ("B",)
    with pytest.raises(InputError):
        whole.index("A+C")


def test_summary_survives_npz_without_pickle(tmp_path: Path) -> None:
    summary = Screen.from_anndata(example(), "label").summary()
    np.savez(tmp_path / "summary.npz", **summary.arrays())
    with np.load(tmp_path / "summary.npz", allow_pickle=False) as stored:
        again = ConditionSummary.from_arrays(stored)
        with pytest.raises(InputError, match="halves"):
            ConditionSummary.from_arrays({name: stored[name] for name in stored if name != "halves"})
    assert (again.conditions, again.targets) == (summary.conditions, summary.targets)
    for name, value in summary.arrays().items():
        assert again.arrays()[name].dtype == value.dtype and again.arrays()[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "1 NaN"),
        (np.inf, "1 infinite"),
        (-np.inf, "1 infinite"),
        (-1.0, "1 negative"),
        (1e300, "1 infinite"),
    ],
)
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "float64"])
def test_values_that_are_no_expression_are_refused(value: float, said: str, form: str) -> None:
    data = example()
    counts = dense(data.X).astype(np.float64)
    counts[5, 3] = value
    with np.errstate(over="ignore"):
        data.X = FORMS[form](counts if value == 1e300 else counts.astype(np.float32))
    assert said in refusal(data)


def test_missing_labels_are_refused() -> None:
    for gap in (None, np.nan, pd.NA, "nan", "None"):
        data = example()
        data.obs["label"] = pd.Series(
            [gap if cell in (4, 9) else label for cell, label in enumerate(data.obs["label"])],
            index=data.obs.index,
            dtype=object,
        )
        message = refusal(data)
        assert "2 of 210" in message and "'cell4'" in message and "'label'" in message
    data.obs["label"] = data.obs["label"].astype("category").cat.add_categories("zz")
    refusal(data)
    assert len(Screen.from_anndata(data, "label", control_label="None")) == 210
    data = example()
    data.obs["batch"] = data.obs["batch"].astype(float).where(data.obs.index != "cell7")
    assert "'cell7'" in refusal(data, batch_key="batch")
    assert "'cell7'" in refusal(data, covariate_keys=["batch"])


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


def test_missing_names_are_refused() -> None:
    data = example()
    message = refusal(data, "gene")
    assert "'gene'" in message and "'label', 'batch', 'donor'" in message
    assert "'bath'" in refusal(data, batch_key="bath") and "'d'" in refusal(data, dose_key="d")
    assert "no layers" in refusal(data, layer="counts")
    data.layers["raw"] = data.X
    assert "'raw'" in refusal(data, layer="counts")
    data.X = None
    assert "'raw'" in refusal(data)


def test_duplicate_genes_labels_and_odd_matrices_are_refused() -> None:
    data = example()
    data.var_names = ["g1", "g1", *data.var_names[2:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "'g1'" in refusal(data)
    assert "'A+A'" in refusal(example(labels=["ctrl", "A+A"]))
    assert "--separator" in refusal(example(labels=["ctrl", "A+B", "A,B"]))
    assert "0 cells" in refusal(example()[:0])
    assert "'A'" in refusal(example(labels=["A", "control", "B"]), control_label="B").replace(
        "'control'", "'A'"
    )
    for wrong in (example().obs, None, 3):
        assert "path of an h5ad file" in refusal(wrong)


def test_repeated_cell_names_do_not_warn(tmp_path: Path) -> None:
    data = example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.obs_names = ["same"] * 210
        data.write_h5ad(tmp_path / "same.h5ad")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        screen = Screen.from_anndata(tmp_path / "same.h5ad", "label")
        screen.summary()
    assert not caught and len(screen) == 210


def test_files_that_are_no_h5ad_are_refused(tmp_path: Path) -> None:
    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "does not exist" in refusal(tmp_path / "nowhere.h5ad")
    assert "folder" in refusal(tmp_path)
    assert "0 bytes" in refusal(written("empty.h5ad", b""))
    assert "not an h5ad file" in refusal(written("table.h5ad", b"cell,label,g1\nc1,A,3\n"))
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["matrix"] = np.ones(3)
    assert "'matrix'" in refusal(tmp_path / "other.h5ad")
    with h5py.File(tmp_path / "hollow.h5ad", "w") as file:
        file["obs"], file["var"], file["X"] = 1, 2, 3
    assert "cannot be read" in refusal(tmp_path / "hollow.h5ad")


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    example().write_h5ad(tmp_path / "whole.h5ad", compression="gzip")
    content = (tmp_path / "whole.h5ad").read_bytes()
    cut = tmp_path / "cut.h5ad"
    for length in sorted({4, 8, 100, 800, *range(2000, len(content), len(content) // 12), len(content) - 1}):
        cut.write_bytes(content[:length])
        refusal(cut)


@pytest.mark.parametrize("name", ["X/data", "X/indices", "obs/donor/codes"])
def test_damage_that_only_reading_finds_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "damaged.h5ad"
    example().write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file[name].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)
