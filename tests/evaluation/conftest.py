"""Small training and test summaries with exactly known means, and the semi-synthetic Norman screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from pvae_pyro.summary import ConditionSummary


def doses_of(condition: str) -> dict[str, float]:
    """Doses of a canonical condition name."""
    if condition == "control":
        return {}
    parts = [part.split("@") for part in condition.split("+")]
    return {part[0]: float(part[1]) if len(part) > 1 else 1.0 for part in parts}


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., ConditionSummary]:
    """Build a summary from means, variances, cell counts, halves; targets default to those that occur."""

    def make(
        means: Mapping[str, Any],
        n_cells: int | Sequence[int] = 50,
        variance: Any = 1.0,
        targets: Sequence[str] | None = None,
        halves: Any = None,
    ) -> ConditionSummary:
        conditions = tuple(means)
        mean = np.array([means[name] for name in conditions], dtype=float)
        names = tuple(targets) if targets else tuple(sorted({t for c in conditions for t in doses_of(c)}))
        design = np.zeros((len(conditions), len(names)), dtype=np.float32)
        for row, condition in enumerate(conditions):
            for target, dose in doses_of(condition).items():
                design[row, names.index(target)] = dose
        return ConditionSummary(
            conditions=conditions,
            targets=names,
            design=design,
            n_cells=np.broadcast_to(np.asarray(n_cells, dtype=np.int64), (len(conditions),)).copy(),
            mean=mean,
            variance=np.broadcast_to(np.asarray(variance, dtype=float), mean.shape).copy(),
            halves=np.stack([mean, mean]) if halves is None else np.asarray(halves, dtype=float),
            genes=np.array([f"g{i}" for i in range(mean.shape[1])]),
        )

    return make


@pytest.fixture(scope="session")
def norman(
    shared_data: Callable[[str], Path], make_summary: Callable[..., ConditionSummary]
) -> ConditionSummary:
    """Condition means of log1p(counts per 10,000) of the semi-synthetic screen, computed from the counts."""
    anndata = pytest.importorskip("anndata")
    data = anndata.read_h5ad(shared_data("norman_semisynthetic.h5ad"))
    labels = data.obs["guide_ids"].astype(str).to_numpy()
    counts = sp.csr_matrix(data.X, dtype=np.float64)
    counts.data *= np.repeat(1e4 / counts.sum(axis=1).A1, np.diff(counts.indptr))
    counts.data = np.log1p(counts.data)
    rng = np.random.default_rng(0)
    means, variances, cells, halves = {}, [], [], []
    for label in sorted(set(labels), key=lambda name: (name.count(","), bool(name), name)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        part = counts[rows].toarray()
        means["+".join(sorted(label.split(","))) if label else "control"] = part.mean(axis=0)
        variances.append(part.var(axis=0, ddof=1))
        cells.append(len(rows))
        cut = len(rows) // 2
        halves.append([part[:cut].mean(axis=0), part[cut:].mean(axis=0)])
    return make_summary(means, cells, np.array(variances), halves=np.swapaxes(halves, 0, 1))
