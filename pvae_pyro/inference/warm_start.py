"""Closed-form estimates from a training screen (design 3.1): loadings, shifts, background and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..screen import CONTROL, Screen
from ..story.model import PerturbedVAE
from .covariance import CellVariation, cell_variation
from .responding import along_shifts
from .rotation import varimax
from .shrinkage import shrink

Array = NDArray[np.float64]

# Variance of a responsive latent inside a condition, as a share of the cells' variance along its loading, is what genes
# have in common there; measurement noise is not counted twice. Kept away from zero so that a latent remains a latent.
LEAST_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Start:
    """The start on the scale of the linear predictor; one unit of latent k is `unit[k]` control-cell standard deviations."""

    unit: Array  # (latents,)
    intercept: Array  # (batches, genes)
    centre: Array  # (batches, genes), expression of control cells
    responsive: Array  # (latents, genes) loadings
    background: Array  # (background, genes) loadings
    scores: Array  # (conditions, latents) total shift of each training condition
    score_sd: Array  # (conditions, latents) its sampling sd
    scale: Array  # (latents,) empirical-Bayes size of effects
    noise: Array  # (genes,) sd, or inverse dispersion
    slope: Array  # (genes,) d expression / d predictor at control
    outside: Array  # (genes,) unit of what combinations do outside the decoder's span
    level: Array  # (genes,) control mean
    variation: CellVariation
    # sites of the penetrance by name: value and sd on the unconstrained scale; none where it says nothing of them
    penetrance: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return int(self.responsive.shape[0])


def closed_form(model: PerturbedVAE, screen: Screen, rows: NDArray[np.int64]) -> Start:
    """Estimate everything that has a closed form from these training cells of the screen.

    1. Condition means and batch effects by least squares; within-condition covariance as diagonal plus low rank. The control
       mean is then told from all conditions (`_told_control`): its noise is in every shift, and a pair would count it twice.
    2. Shifts, whitened by it and weighted by sqrt(cells), shrunk by optimal singular-value shrinkage, which picks the rank.
    3. Shrunk shifts carried to the predictor's scale by inverting the likelihood's mean, reduced to the same rank, rotated.
    """
    condition = screen.condition[rows]
    variation = cell_variation(
        screen.expression[rows], condition, screen.batch[rows], model.background, len(screen.batches)
    )
    control = screen.conditions.index(CONTROL)
    others = [i for i in range(len(screen.conditions)) if i != control]
    n_cells = np.bincount(condition, minlength=len(screen.conditions)).astype(float)
    if not hasattr(model.penetrance, "start"):  # where cells escape, their odds hang on the control mean as measured
        variation = _told_control(variation, control, n_cells)
    mean0 = _control_mean(variation, control)
    shrunk = shrink(
        variation.whiten(variation.means[others] - mean0), n_cells[others], np.ones(screen.n_genes)
    )
    rank = model.responsive or int(np.clip(shrunk.rank, 2, 64))

    noise, slope0 = _noise(model, screen, rows, variation)
    solve = _Inverse(model, noise, screen.library[rows], mean0, variation, slope0)
    eta0 = solve(mean0[None])
    raw = variation.unwhiten(shrunk.shifts)
    eta = solve(np.maximum(mean0 + raw, 0.02 * mean0)) - eta0
    slope = solve.slope(eta0[0])

    # back to whitened units, so that axes stay orthonormal there and effects have the cells' own unit
    weight = np.sqrt(n_cells[others])[:, None]
    u, s, vt = np.linalg.svd(variation.whiten(eta * slope) * weight, full_matrices=False)
    rank = min(rank, len(s))
    scores, axes = (u[:, :rank] * s[:rank]) / weight, vt[:rank]
    prior = _matched_prior(
        shrunk.values, rank, screen.n_genes, len(others), float(np.mean(n_cells[others])), scores
    )
    turn = varimax(scores)
    order = np.argsort(-((scores @ turn) ** 2).sum(axis=0))
    turn = turn[:, order]
    scores, axes, scale = scores @ turn, turn.T @ axes, np.sqrt((turn**2 * (prior**2)[:, None]).sum(axis=0))

    unit = np.sqrt(np.clip(variation.shared_variance(axes), LEAST_SHARE, 1.0))
    total = np.zeros((len(screen.conditions), rank))
    total[others] = scores / unit
    responsive = unit[:, None] * variation.unwhiten(axes)
    outside = variation.background_outside(axes)
    background = np.zeros((model.background, screen.n_genes))
    background[: len(outside)] = outside / slope
    if model.likelihood.observes == "expression":
        explained = np.minimum((outside**2).sum(axis=0), (solve.widest * slope) ** 2) + (responsive**2).sum(
            axis=0
        )
        noise = _noise_of(model, np.sqrt(np.maximum(variation.sd**2 - explained, 0.1 * variation.sd**2)), mean0)
    responsive = responsive / slope
    # where a gene is hardly seen the slope says little: no more spread of the predictor than the likelihood can bear
    widest = solve.widest
    background *= np.minimum(1.0, widest / np.maximum(np.sqrt((background**2).sum(axis=0)), 1e-12))
    # nor larger shifts than those that were carried over, which dividing by a small slope could make of noise
    carried, made = np.abs(eta).max(axis=0), np.abs(total @ responsive).max(axis=0)
    if model.likelihood.observes == "counts":
        carried = np.minimum(carried, 2.0)
    spread = np.sqrt((background**2).sum(axis=0) + (responsive**2).sum(axis=0))
    responsive *= np.minimum(
        np.minimum(1.0, carried / np.maximum(made, 1e-12)),
        np.maximum(widest, carried) / np.maximum(spread, 1e-12),
    )
    batches = variation.batch_effects
    intercept = eta0 + solve.intercepts(mean0, batches) if len(batches) > 1 else eta0
    return Start(
        unit=unit,
        intercept=intercept,
        centre=mean0 + batches,
        responsive=responsive,
        background=background,
        scores=total,
        score_sd=1 / (unit * np.sqrt(n_cells)[:, None]),
        scale=scale / unit,
        noise=noise,
        slope=slope,
        outside=np.minimum(variation.sd / slope, 5 * np.maximum(widest, 0.1)),
        level=mean0,
        variation=variation,
        penetrance=_penetrance(model, screen, rows, variation),
    )


def _told_control(variation: CellVariation, control: int, n_cells: Array) -> CellVariation:
    """The same with the control mean less the posterior mean of its own noise.

    Whitened shifts are y_p = m_p + e_p - e_0 with e_p ~ Normal(0, 1/n_p): correlated rows, noise covariance
    R = diag(1/n_p) + 1/n_0. m is what optimal shrinkage keeps of R^(-1/2) y; what is left tells e_0, given its prior.
    """
    others = np.arange(len(n_cells)) != control
    n, n0 = n_cells[others], n_cells[control]
    y = variation.whiten(variation.means[others] - variation.means[control])
    root = np.linalg.cholesky(np.diag(1 / n) + 1 / n0)
    kept = root @ shrink(np.linalg.solve(root, y), np.ones(len(n)), np.ones(y.shape[1])).shifts
    noise = -(n @ (y - kept)) / (n0 + n.sum())
    means = variation.means.copy()
    means[control] -= variation.unwhiten(noise[None])[0]
    return replace(variation, means=means)


def _penetrance(
    model: PerturbedVAE, screen: Screen, rows: NDArray[np.int64], variation: CellVariation
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sites of the penetrance, where the part can tell them from cells along the shift of their condition."""
    find = getattr(model.penetrance, "start", None)
    if find is None:
        return {}
    condition, control = screen.condition[rows], screen.conditions.index(CONTROL)
    along = along_shifts(variation, screen.expression[rows], condition, screen.batch[rows], control)
    sites: dict[str, tuple[torch.Tensor, torch.Tensor]] = find(
        torch.as_tensor(along), torch.as_tensor(condition), torch.as_tensor(screen.design)
    )
    return sites


def _matched_prior(
    values: Array, rank: int, n_genes: int, n_rows: int, n_cells: float, scores: Array
) -> Array:
    """Prior sd (rank,) under which the posterior mean of a typical row shrinks as optimal shrinkage did.

    A shrunk value e came from y with e / y = t2 / (t2 + 1/n), so t2 = (e / y) / (1 - e / y) / n. It is lower than
    the spread of true effects: it also pays for the uncertainty of the loadings.
    """
    longer, beta = max(n_rows, n_genes), min(n_rows, n_genes) / max(n_rows, n_genes)
    e2 = np.zeros(rank)
    e2[: min(rank, len(values))] = (values[:rank] ** 2) / longer
    # invert e = sqrt((y^2 - beta - 1)^2 - 4 beta) / y
    y2 = ((2 * (beta + 1) + e2) + np.sqrt((2 * (beta + 1) + e2) ** 2 - 4 * (1 - beta) ** 2)) / 2
    kept = np.clip(np.sqrt(e2 / y2), 0.05, 0.999)
    return np.sqrt(kept / (1 - kept) / n_cells)


def _control_mean(variation: CellVariation, control: int) -> Array:
    """Control mean of each gene, above zero: a gene that a hundred controls do not show is rare, not absent."""
    means = variation.means
    return np.asarray(np.maximum(means[control], np.maximum(0.05 * means.mean(axis=0), 1e-4)))


def _noise(
    model: PerturbedVAE, screen: Screen, rows: NDArray[np.int64], variation: CellVariation
) -> tuple[Array, Array]:
    """Per-gene noise of the likelihood (sd or inverse dispersion) and a first slope, each (genes,)."""
    if model.likelihood.observes == "expression":
        mean0 = _control_mean(variation, screen.conditions.index(CONTROL))
        identity = getattr(model.likelihood, "link", "") == "identity"
        # softplus(b eta) / b = m has slope 1 - exp(-b m), and b m is at least a half
        slope = np.ones_like(mean0) if identity else -np.expm1(-np.maximum(mean0, 0.5))
        return _noise_of(model, variation.sd * np.sqrt(1 - variation.common), mean0), slope
    assert screen.counts is not None
    control = rows[screen.condition[rows] == screen.conditions.index(CONTROL)]
    counts, library = screen.counts[control].astype(np.float64), screen.library[control] / 1e4
    rate = np.asarray(counts.sum(axis=0)).ravel() / library.sum()
    second = np.asarray(counts.multiply(counts).sum(axis=0)).ravel()
    cross = np.asarray(counts.T @ library).ravel()
    variance = second - 2 * rate * cross + rate**2 * (library**2).sum() - rate * library.sum()
    excess = np.maximum(variance, 0) / np.maximum(rate**2 * (library**2).sum(), 1e-12)
    # the background latents carry their part of the overdispersion
    inverse = 1 / np.clip(excess * (1 - variation.common), 0.02, 20)
    return inverse, np.maximum(rate / (1 + rate), 1e-3)


def _noise_of(model: PerturbedVAE, sd: Array, level: Array) -> Array:
    """Noise of the likelihood (genes,) that has this sd; the sd itself, unless the part says otherwise."""
    convert = getattr(model.likelihood, "noise_of", None)
    return sd if convert is None else np.asarray(convert(torch.as_tensor(sd), torch.as_tensor(level)))


class _Inverse:
    """Linear predictor at which the likelihood's mean over cells is a given expression, by inverse interpolation."""

    def __init__(
        self,
        model: PerturbedVAE,
        noise: Array,
        library: Array,
        mean0: Array,
        variation: CellVariation,
        slope: Array,
    ):
        self.noise = torch.as_tensor(noise)
        self.likelihood = model.likelihood
        self.moments = model.likelihood.moments(self.noise, torch.as_tensor(library), torch.as_tensor(mean0))
        self.widest = model.likelihood.widest(torch.as_tensor(mean0)).numpy()
        identity = getattr(model.likelihood, "link", "") == "identity"
        low, high = (-1e3, 1e3) if identity else (-12.0, max(12.0, float(mean0.max()) * 4))
        fine = np.linspace(-2, 2, 2048) ** 3 / 4  # rare genes need steps of their own size around zero
        spread = variation.common * variation.sd**2
        self.variance = torch.as_tensor(np.minimum(spread / slope**2, self.widest**2))
        self.grid = np.unique(np.concatenate([np.linspace(low, high, 1024), fine]))
        grid = torch.as_tensor(self.grid)[:, None].expand(-1, len(self.noise))
        self.values = self.moments(grid, self.variance.expand_as(grid), self.noise)[0].numpy()

    def __call__(self, mean: Array) -> Array:
        """Predictors (rows, genes) of means (rows, genes); means out of reach get the nearest end."""
        columns = [np.interp(mean[:, g], self.values[:, g], self.grid) for g in range(mean.shape[1])]
        return np.stack(columns, axis=1)

    def intercepts(self, mean0: Array, batch_effects: Array) -> Array:
        """Batch effects (batches, genes) on the predictor's scale."""
        return self(np.maximum(mean0 + batch_effects, 0.02 * mean0)) - self(mean0[None])

    def slope(self, eta: Array) -> Array:
        """d mean expression / d predictor (genes,), averaged over cells, kept away from zero."""
        at, step = torch.as_tensor(eta), torch.as_tensor(np.minimum(0.1 * self.widest, 0.05))
        up, _ = self.moments(at + step, self.variance, self.noise)
        down, _ = self.moments(at - step, self.variance, self.noise)
        return np.maximum(((up - down) / (2 * step)).numpy(), 1e-3)
