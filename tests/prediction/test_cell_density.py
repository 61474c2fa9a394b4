"""Density of new cells: the law that new cells are drawn from, a mixture over draws, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from pvae_pyro.errors import InputError
from pvae_pyro.inference import Fit

FitOf = Callable[..., Fit]
PAIR = "T02+T05"


def test_density_is_that_of_the_cells_that_a_draw_makes(fitted: FitOf) -> None:
    posterior = fitted("linear").predict([PAIR], draws=1, seed=4)
    cells = posterior.new_cells(PAIR, 20_000, seed=1).astype(float)[:, posterior.active]
    genes = posterior.genes[posterior.active]
    found = posterior.cell_log_density(PAIR, cells, genes)
    law = multivariate_normal(cells.mean(axis=0), np.cov(cells.T))
    # the law fitted to these very cells is better by parameters / (2 cells) on average
    gap = law.logpdf(cells).mean() - found.mean()
    n = len(genes)
    assert gap == pytest.approx((n + n * (n + 1) / 2) / (2 * len(cells)), abs=0.005)
    assert found.mean() - law.logpdf(cells + 0.3 * cells.std(axis=0)).mean() > 0.5, "and a shift would be seen"
    apart = sum(
        np.asarray(multivariate_normal(cells[:, g].mean(), cells[:, g].var()).logpdf(cells[:, g])) for g in range(len(genes))
    )
    assert found.mean() - apart.mean() > 0.2, "what genes share is in it"


def test_draws_are_averaged_as_densities_and_genes_are_named(fitted: FitOf) -> None:
    rng = np.random.default_rng(0)
    fit = fitted()
    posterior = fit.predict([PAIR, "T01"], draws=6, seed=2)
    cells = posterior.new_cells("T01", 5, seed=1)
    whole = posterior.cell_log_density("T01", cells)
    # the first draws of a larger number are those of a smaller one
    single = fit.predict([PAIR, "T01"], draws=1, seed=2).cell_log_density("T01", cells)
    most = fit.predict([PAIR, "T01"], draws=5, seed=2).cell_log_density("T01", cells)
    assert (whole >= most + np.log(5 / 6) - 1e-6).all() and (whole >= single - np.log(6) - 1e-6).all()
    order = rng.permutation(len(posterior.genes))
    turned = posterior.cell_log_density("T01", cells[:, order], posterior.genes[order])
    np.testing.assert_allclose(turned, whole, rtol=1e-8)
    with pytest.raises(InputError, match="'none' was not predicted"):
        posterior.cell_log_density("T01", cells[:, :1], ["none"])
    with pytest.raises(InputError, match="a column for each of 25 genes"):
        posterior.cell_log_density("T01", cells[:, :3])


def test_one_gene_of_a_draw_has_the_moments_of_the_prediction(fitted: FitOf) -> None:
    posterior = fitted("counts").predict([PAIR], draws=3, seed=2)
    mean, variance = (m.double().numpy() for m in posterior.recipe.cell_moments(0))
    gene = int(np.flatnonzero(posterior.active)[4])
    x = np.linspace(0, 3, 7)[:, None]
    column = int(np.cumsum(posterior.active)[gene] - 1)
    moments = zip(mean[:, column], variance[:, column], strict=True)
    expected = [-0.5 * ((x[:, 0] - m) ** 2 / v + np.log(2 * np.pi * v)) for m, v in moments]
    found = posterior.cell_log_density(PAIR, x, [posterior.genes[gene]])
    np.testing.assert_allclose(found, logsumexp(expected, axis=0) - np.log(3), rtol=1e-5)
