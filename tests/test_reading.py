"""Reading: how a file is stored does not matter, and what cannot be used is refused in one sentence."""

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
