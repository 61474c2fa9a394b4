"""How far the guide is from the exact posterior of the globals, by the tail of importance ratios."""

from __future__ import annotations

import numpy as np
import torch
from arviz_stats.base.array import array_stats
from numpy.typing import NDArray

from ..errors import InputError
from ..guides import AmortizedGuide, Map, Sampled
from ..guides.ensemble import Restart
from ..inference.collapsed import CellMoments, lacking
from ..inference.fitting import Fit
from ..inference.restart import training_rows
from ..inference.sampling import JointDensity
from ..screen import Screen
from .sites import draw_sites

MOST_MOMENTS = 5_000_000  # conditions x genes x genes: seconds of algebra


def pareto_k(fit: Fit, run: Restart, screen: Screen, draws: int, seed: int) -> float:
    """Pareto k of p(globals, cells) / q(globals) for one run of a fit and the screen that it was trained on.

    Latents of cells are integrated out exactly, so that only what all cells share is judged, given the decoder as it was trained.
    Below `usable(draws)` draws can be reweighted to the exact posterior (Vehtari et al. 2024, arXiv 1507.02646); of modes that no
    draw saw it says nothing. Raises InputError with the `hindrance`.
    """
    if problem := hindrance(fit, screen):
        raise InputError(f"Pareto k cannot be had: {problem}.")
    inner = screen.select_genes(fit.genes[fit.active].tolist())
    return tail_shape(log_ratios(fit.modules()[1], inner, training_rows(inner, run, fit.settings)[0], draws, seed))


def hindrance(fit: Fit, screen: Screen | None) -> str:
    """Why Pareto k cannot be had of this fit with this screen; empty where it can."""
    n, g = len(fit.conditions), int(fit.active.sum())
    if isinstance(fit.members[0].guide, Sampled):
        return "globals that were sampled have no density; R-hat of their chains stands for it"
    if isinstance(fit.members[0].guide, Map):
        return "the guide Map has globals at points, without a width"
    if missing := lacking(fit.model):
        return f"latents of cells do not integrate out, which needs {', '.join(missing)}"
    if n * g * g > MOST_MOMENTS:
        return f"covariances of {n} conditions among {g} genes are too many"
    if screen is None:
        return "it takes the cells, fit.diagnose(screen trained on)"
    same = screen.conditions == fit.conditions and np.array_equal(np.asarray(screen.genes).astype(str), fit.genes)
    if not same or not np.array_equal(np.bincount(screen.condition, minlength=n), fit.training.n_cells):
        return "the screen has other conditions, genes or numbers of cells than the one trained on"
    return ""


def log_ratios(guide: AmortizedGuide, screen: Screen, rows: NDArray[np.int64], draws: int, seed: int) -> NDArray[np.float64]:
    """log p(globals, these cells) - log q(globals) in the draws that predictions with this seed use, (draws,)."""
    density = JointDensity(guide.story, CellMoments.of(screen, rows, guide.story.decoder.intercept.detach().cpu()))
    sites = draw_sites(guide, draws, seed)
    shapes = {site.name: site.centre.shape for site in density.sites}
    cells = []
    with torch.no_grad():
        for row in range(draws):
            values = {name: torch.as_tensor(sites.values[name][row]).double().reshape(shape) for name, shape in shapes.items()}
            cells.append(float(density.log_likelihood(values)))
    return np.array(cells) + sites.log_prior - sites.log_q


def usable(draws: int) -> float:
    """Largest k with which so many draws can be reweighted."""
    return min(1 - 1 / np.log10(draws), 0.7)


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
