"""How far the guide is from the exact posterior of the globals, by the tail of importance ratios."""

from __future__ import annotations

import numpy as np
from arviz_stats.base.array import array_stats
from numpy.typing import NDArray

from ..errors import InputError
from ..guides import Sampled
from ..inference.fitting import Fit
from ..screen import CONTROL
from .density import log_density
from .recipe import Recipe
from .sites import draw_sites


def pareto_k(fit: Fit, draws: int = 200, seed: int = 0, genes: int = 50) -> float:
    """Pareto k of p(globals, pseudobulks) / q(globals), for one run.

    Cells are integrated out, so that only what all cells share is judged: the data are the measured pseudobulks of the
    trained conditions, whose law given a draw is normal (`density.log_density`), at the genes with the largest shifts. Below 0.5
    is good, up to 0.7 usable, above the draws cannot be reweighted to the exact posterior (Vehtari et al. 2024, arXiv
    1507.02646); with thousands of globals it is above for every factorised guide, and says nothing of modes that no draw saw.
    """
    if isinstance(fit.guide, Sampled):
        raise InputError("globals that were sampled have no density to compare with; fit.diagnose() has R-hat of their chains.")
    summary = fit.training
    names = [c for c in summary.conditions if c != CONTROL]
    rows, control = [summary.index(c) for c in names], summary.index(CONTROL)
    moved = np.abs(summary.mean[rows] - summary.mean[control]).max(0) * fit.active
    chosen = np.sort(np.argsort(-moved, kind="stable")[: min(genes, int(fit.active.sum()))])
    columns = np.cumsum(fit.active)[chosen] - 1
    counts = dict(zip(names, summary.n_cells[rows].tolist(), strict=True))
    posterior = fit.predict(names, draws=draws, n_cells=counts, seed=seed)
    assert isinstance(posterior.recipe, Recipe)
    data = log_density(posterior.recipe, summary.mean[rows][:, chosen], columns).sum(1)
    sites = draw_sites(posterior.recipe.guide, draws, seed)
    return tail_shape(data + sites.log_prior - sites.log_q)


def tail_shape(log_ratios: NDArray[np.float64]) -> float:
    """Pareto k of importance ratios given as logs (draws,); 0 where all are the same, infinite where the
    largest leave the others of the tail too small for a floating-point number."""
    if np.ptp(log_ratios) < 1e-9:
        return 0.0
    tail = int(np.ceil(min(0.2 * len(log_ratios), 3 * len(log_ratios) ** 0.5)))
    if np.sort(log_ratios)[-tail] < log_ratios.max() - 600:
        return float("inf")
    with np.errstate(all="ignore"):  # ratios that vanish beside the largest leave a tail without a scale
        _, k = array_stats.psislw(log_ratios.max() - log_ratios)  # type: ignore[no-untyped-call]  # it takes minus logs
    k = float(np.asarray(k).item())
    return k if np.isfinite(k) else float("inf")
