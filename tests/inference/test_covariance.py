"""A gene that hardly varies within conditions: it must not outweigh all others, and genes as they are must not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pvae_pyro.inference import FitSettings, fit
from pvae_pyro.inference.covariance import LEAST_SD, cell_variation
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.splits import split_screen
from pvae_pyro.story import Gaussian, PerturbedVAE


@pytest.fixture(scope="module")
def with_a_still_gene() -> Callable[[float | None], tuple[int, np.ndarray, np.ndarray, Any]]:
    """Rank, predicted and measured pairs of a screen to which a gene was added that varies between conditions alone.

    Its shifts have the sd that is given, its cells one of 0.0001; None: without it. The other genes, and a prediction by seed.
    """
    made = simulate("linear-gaussian", seed=3, targets=12, doubles=24, controls=300, cells_per_condition=60, genes=60).adata
    x, labels = np.asarray(made.X), made.obs["condition"].astype(str).to_numpy()
    rng = np.random.default_rng(0)
    single = {name: rng.normal() for name in sorted(set(labels)) if "+" not in name and name != "control"} | {"control": 0.0}
    moved = np.array([sum(single[target] for target in name.split("+")) for name in labels])
    noise = 1e-4 * rng.normal(size=len(labels))

    def run(size: float | None) -> tuple[int, np.ndarray, np.ndarray, Any]:
        columns = x if size is None else np.column_stack([x, 2 + size * moved + noise])
        genes = pd.DataFrame(index=[f"g{i:02d}" for i in range(columns.shape[1])])
        adata = anndata.AnnData(columns.astype(np.float32), made.obs[["condition"]], genes)
        split = split_screen(Screen.from_anndata(adata, "condition", scale="normalised"), train="singles")
        model = PerturbedVAE(likelihood=Gaussian(link="identity"), background=3, hidden=0)
        done = fit(model, split.train, settings=FitSettings(epochs=0), device="cpu", progress=False)
        truth = split.held_out.summary()
        counts = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))

        def predicted(seed: int) -> np.ndarray:
            return done.predict(truth.conditions, draws=100, n_cells=counts, seed=seed).draws().mean(axis=0)[:, :60]

        return len(done.state["story.effect_scale"]), predicted(0), truth.mean[:, :60], predicted

    return run


def test_a_gene_that_hardly_varies_within_conditions_does_not_outweigh_the_others(with_a_still_gene: Any) -> None:
    rank, plain, truth, again = with_a_still_gene(None)
    monte_carlo = np.sqrt(((again(1) - plain) ** 2).mean())
    still_rank, still, _, _ = with_a_still_gene(0.001)
    assert still_rank == rank
    assert np.sqrt(((still - plain) ** 2).mean()) < 1.25 * monte_carlo  # other random numbers, nothing else
    l2 = np.linalg.norm(plain - truth, axis=1).mean()
    for size in (0.001, 0.05):  # L2 was 1.4 and 2.7 times as large without a least sd
        assert np.linalg.norm(with_a_still_gene(size)[1] - truth, axis=1).mean() < 1.05 * l2


def test_the_least_sd_is_inert_where_genes_vary(screen: Callable[..., Screen]) -> None:
    for preset in ("default", "linear-gaussian"):
        cells = screen(preset)
        seen = np.asarray(abs(cells.expression).sum(axis=0)).ravel() > 0
        found = cell_variation(cells.expression[:, seen], cells.condition, cells.batch, 2, len(cells.batches))
        assert found.sd.min() > 2 * LEAST_SD * np.median(found.sd)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)) * np.array([1e-3, 0.3, *np.ones(10)])
    sd = cell_variation(sp.csr_matrix(x), np.zeros(200, np.int64), np.zeros(200, np.int64), 2).sd
    plain = x.std(axis=0, ddof=1)
    np.testing.assert_allclose(sd[1:], plain[1:], rtol=1e-6)
    assert sd[0] == pytest.approx(LEAST_SD * np.median(plain), rel=1e-6)
