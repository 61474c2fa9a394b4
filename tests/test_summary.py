"""Condition summaries: brute force, and independence of what else is in the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pvae_pyro.errors import InputError
from pvae_pyro.screen import ConditionSummary, Screen

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
