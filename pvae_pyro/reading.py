"""AnnData, in memory or on disk, to a checked sparse matrix and label columns, or one sentence of refusal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pvae_pyro.errors import InputError
from pvae_pyro.labels import listing

_LOG = logging.getLogger("pvae_pyro")
PER_CELL = 1e4
"""Counts are scaled to this total per cell before log1p."""

_ROWS = 4096  # cells handled at a time
_BLOCK = 1 << 22  # numbers handled at a time: a dense file never becomes a dense matrix
_MISSING = ("nan", "<na>", "none")  # what missing labels become when a column was turned into text


@dataclass(frozen=True, eq=False)
class Source:
    """What a screen needs of a file: values as stored (float32), genes, the obs columns asked for, cells."""

    matrix: sp.csr_matrix
    genes: np.ndarray
    columns: dict[str, pd.Series]
    cell_names: pd.Index
    origin: str


def read_source(data: anndata.AnnData | str | Path, columns: Sequence[str], layer: str | None) -> Source:
    """Read matrix and obs columns of an AnnData or an h5ad file; never modifies it, never makes it dense.

    Raises InputError for a file that is missing, empty, damaged or no h5ad, a missing column or layer,
    duplicate gene names and values that are not numbers.
    """
    if isinstance(data, anndata.AnnData):
        return _extract(data, columns, layer, "the AnnData")
    if not isinstance(data, str | Path):
        raise InputError(
            f"a screen is read from an AnnData or the path of an h5ad file, but {type(data).__name__} was "
            "given; pass one of these."
        )
    with _backed(Path(data).expanduser()) as backed:
        return _extract(backed, columns, layer, Path(data).name)


def read_obs(path: str | Path) -> pd.DataFrame:
    """The obs table of an h5ad file; InputError for a file that is missing, damaged or no h5ad."""
    with _backed(Path(path).expanduser()) as backed:
        return pd.DataFrame(backed.obs.copy())


@contextmanager
def _backed(path: Path) -> Iterator[anndata.AnnData]:
    """An h5ad file with its matrix left on disk; whatever fails while it is read is one InputError."""
    _check_file(path)
    with _quiet():
        try:
            backed = anndata.read_h5ad(path, backed="r")
            try:
                yield backed
            finally:
                backed.file.close()
        except (InputError, MemoryError):
            raise
        # A damaged file fails in h5py, anndata, numpy or pandas, each in its own way.
        except Exception as problem:  # noqa: BLE001
            detail = _brief(problem)
            raise InputError(
                f"{path.name} cannot be read, it is damaged, cut short or not an h5ad file "
                f"({type(problem).__name__}: {detail}); copy or download it again."
            ) from None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"the file {str(path)!r} does not exist; give the path of an h5ad file.")
    if not path.is_file():
        raise InputError(f"{str(path)!r} is a folder; give the path of an h5ad file.")
    try:
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path.name} is empty (0 bytes); copy or download it again.")
        if not h5py.is_hdf5(path):
            with path.open("rb") as stream:
                start = stream.read(16)
            raise InputError(
                f"{path.name} is not an h5ad file, it starts with {start!r}; save it with AnnData.write_h5ad."
            )
        with h5py.File(path, "r") as file:
            if "obs" not in file or "var" not in file:
                raise InputError(
                    f"{path.name} is an HDF5 file but no h5ad, it holds {listing(file)} and not 'obs' and "
                    "'var'; save it with AnnData.write_h5ad."
                )
    except OSError as problem:
        raise InputError(
            f"{path.name} cannot be opened or is cut short ({_brief(problem)}); copy or download it again."
        ) from None


def _brief(problem: Exception) -> str:
    """What another library said, as a part of one sentence."""
    return (str(problem).splitlines() or [""])[0].replace(". ", ", ").strip(" .")[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings about a user's file (repeated cell names, old formats) go to the log while it is read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        _LOG.debug("while reading: %s", warning.message)


def _extract(data: anndata.AnnData, columns: Sequence[str], layer: str | None, origin: str) -> Source:
    for key in columns:
        if key not in data.obs.columns:
            raise InputError(
                f"{origin} has no obs column {key!r}; its columns are "
                f"{listing(map(str, data.obs.columns), 30)}."
            )
    layers = listing(map(str, data.layers), 30)
    if layer is not None and layer not in data.layers:
        held = f"its layers are {layers}" if layers else "it has no layers, only X"
        raise InputError(f"{origin} has no layer {layer!r}; {held}.")
    if data.n_obs == 0 or data.n_vars == 0:
        raise InputError(
            f"{origin} has {data.n_obs} cells and {data.n_vars} genes; give a file that holds both."
        )
    genes = strings(map(str, data.var_names))
    if len(set(genes.tolist())) < len(genes):
        twice = data.var_names[data.var_names.duplicated()].unique()
        raise InputError(
            f"{len(twice)} gene names occur more than once in {origin} ({listing(map(str, twice), 5)}); make "
            "them unique or keep one of each."
        )
    stored = data.X if layer is None else data.layers[layer]
    if stored is None:
        held = f"name one of its layers, {layers}" if layers else "it has no layers either"
        raise InputError(f"{origin} has no matrix X; {held}.")
    matrix = canonical_csr(_sparse(stored, origin))
    return Source(matrix, genes, {key: data.obs[key].copy() for key in columns}, data.obs_names, origin)


def _sparse(stored: Any, origin: str) -> sp.csr_matrix:
    if hasattr(stored, "to_memory"):  # a sparse matrix on disk
        stored = stored.to_memory()
    dtype = np.dtype(getattr(stored, "dtype", object))
    if dtype.kind not in "biuf":
        raise InputError(
            f"the matrix of {origin} holds {dtype} values, not numbers; store counts as numbers."
        )
    # What does not fit into float32 becomes infinite here and is refused as that.
    with np.errstate(over="ignore", invalid="ignore"):
        if sp.issparse(stored):
            matrix = sp.csr_matrix(stored, copy=False)
            return sp.csr_matrix(
                (matrix.data.astype(np.float32), matrix.indices.copy(), matrix.indptr.copy()), matrix.shape
            )
        rows = max(1, _BLOCK // stored.shape[1])
        blocks = [
            sp.csr_matrix(np.asarray(stored[start : start + rows], dtype=np.float32))
            for start in range(0, stored.shape[0], rows)
        ]
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def canonical_csr(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Put a matrix in its one normal form, in place: sorted, no stored zeros, smallest index type."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    small = max(matrix.nnz, *matrix.shape) < np.iinfo(np.int32).max
    index = np.int32 if small else np.int64
    matrix.indices = matrix.indices.astype(index, copy=False)
    matrix.indptr = matrix.indptr.astype(index, copy=False)
    return matrix


def check_values(matrix: sp.csr_matrix, origin: str) -> None:
    """Refuse values that are neither counts nor normalised expression."""
    for what, wrong in (("NaN", np.isnan), ("infinite", np.isinf)):
        if found := sum(int(wrong(block).sum()) for block in _blocks(matrix.data)):
            raise InputError(
                f"{origin} holds {found} {what} values; remove or mend them, or name another layer (--layer)."
            )
    if found := sum(int((block < 0).sum()) for block in _blocks(matrix.data)):
        raise InputError(
            f"{origin} holds {found} negative values, so it is neither counts nor log expression; use raw "
            "counts, for instance by --layer."
        )


def settle_scale(matrix: sp.csr_matrix, is_control: np.ndarray, scale: str | None, origin: str) -> str:
    """Tell "counts" from "normalised"; counts are rounded in place where storage made them not quite whole.

    Read off the control cells, which are part of every training set, so that the answer never depends on
    cells that are held out. Raises InputError where the control cells hold counts and other cells do not.
    """
    if scale not in (None, "counts", "normalised"):
        raise InputError(f"the scale {scale!r} is unknown; it is 'counts', 'normalised' or left out.")
    if scale == "normalised":
        return scale
    per_cell = np.diff(matrix.indptr)
    broken = np.zeros(matrix.shape[0], dtype=bool)
    for start, block in zip(range(0, matrix.nnz, _BLOCK), _blocks(matrix.data), strict=True):
        value = block.astype(np.float64)
        # Counts that went through a log and back in float32 are whole to about six digits.
        off = np.abs(value - np.rint(value)) > np.minimum(1e-3 + 1e-6 * value, 0.01)
        places = start + np.flatnonzero(off)
        broken[np.searchsorted(matrix.indptr, places, side="right") - 1] = True
    judged = is_control & (per_cell > 0)
    judged = judged if judged.any() else per_cell > 0
    if scale is None and bool(broken[judged].any()):
        return "normalised"
    if broken.any():
        raise InputError(
            f"{int(broken.sum())} of {len(broken)} cells of {origin} hold values that are no whole numbers "
            f"although {'the scale was set to counts' if scale else 'the control cells hold counts'}; give "
            "one scale for all cells, for instance by --layer."
        )
    np.rint(matrix.data, out=matrix.data)
    canonical_csr(matrix)
    return "counts"


def log_expression(
    matrix: sp.csr_matrix, scale: str
) -> tuple[sp.csr_matrix, sp.csr_matrix | None, np.ndarray]:
    """Log expression, counts and library sizes; each cell's numbers depend on that cell alone."""
    if scale == "normalised":
        return matrix, None, np.ones(matrix.shape[0])
    values = np.empty_like(matrix.data)
    library = np.zeros(matrix.shape[0])
    for start in range(0, matrix.shape[0], _ROWS):
        edges = matrix.indptr[start : start + _ROWS + 1]
        counts = matrix.data[edges[0] : edges[-1]].astype(np.float64)
        rows = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        total = np.bincount(rows, weights=counts, minlength=len(edges) - 1)
        library[start : start + _ROWS] = total
        values[edges[0] : edges[-1]] = np.log1p(counts / total[rows] * PER_CELL)
    return sp.csr_matrix((values, matrix.indices, matrix.indptr), matrix.shape), matrix, library


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _BLOCK):
        yield values[start : start + _BLOCK]


def text_column(
    source: Source, key: str, *, labels: bool = False, control_label: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """An obs column as text, however stored: codes (cells,) int64 and the sorted levels that occur.

    `labels`: it names conditions, so that the texts "nan" and "None" are missing, too, unless they are the
    control label. Raises InputError when a value is missing.
    """
    found, raw = pd.factorize(source.columns[key])
    names = [_text(level) for level in raw]
    gone = [labels and name.lower() in _MISSING and name != control_label for name in names]
    missing = (found < 0) | np.array([*gone, False])[found]
    if missing.any():
        first = int(np.flatnonzero(missing)[0])
        raise InputError(
            f"{int(missing.sum())} of {len(found)} cells have no value in the obs column {key!r} (the first "
            f"is {str(source.cell_names[first])!r} in row {first}); label or remove them."
        )
    levels = sorted(set(names))
    place = {level: code for code, level in enumerate(levels)}
    return np.array([place[name] for name in names], dtype=np.int64)[found], levels


def _text(level: Any) -> str:
    if isinstance(level, bytes):
        return level.decode(errors="replace").strip()
    if isinstance(level, float | np.floating) and float(level).is_integer():
        return str(int(level))
    return str(level).strip()


def strings(values: Any) -> np.ndarray:
    """Text array whose item width depends on its own values alone, never on an array it was cut from."""
    return np.array([str(value) for value in values], dtype=np.str_)


def read_lines(path: str | Path, what: str) -> list[str]:
    """Lines of a text file without empty ones and those that begin with "#"; InputError if none is left."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(
            f"the list of {what} {str(path)!r} cannot be read ({type(problem).__name__}); give a text file "
            "with one a line."
        ) from None
    listed = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not listed:
        raise InputError(f"the list of {what} {str(path)!r} is empty; write one a line.")
    return listed
