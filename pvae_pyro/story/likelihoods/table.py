"""Moments of log1p(counts per 10,000) under negative-binomial counts, tabulated over the log rate."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

_LOW, _HIGH, _STEP = -10.0, 9.5, 0.125  # log counts per 10,000; outside, the nearest end is used
_SWITCH = 60.0  # expected counts above which the sum over counts gives way to a second-order expansion


def count_moment_table(
    inverse_dispersion: Tensor, library: Tensor, n_libraries: int = 12
) -> tuple[Tensor, Tensor]:
    """First and second moment of log1p(1e4 y / l), y ~ NB(mean = l/1e4 * exp(eta), theta_g), averaged over libraries l.

    `inverse_dispersion` (genes,), `library` (cells,). Returns the grid of eta (points,) and a table (2, genes, points).
    Libraries enter as `n_libraries` equally likely quantiles.
    """
    grid = np.arange(_LOW, _HIGH + _STEP / 2, _STEP)
    theta = inverse_dispersion.double().cpu().numpy()[:, None]
    levels = (np.arange(n_libraries) + 0.5) / n_libraries
    libraries = np.quantile(library.double().cpu().numpy(), levels)
    table = np.zeros((2, theta.shape[0], len(grid)))
    for size in libraries:
        mean = size / 1e4 * np.exp(grid)  # (points,)
        small = mean <= _SWITCH
        table[:, :, small] += _sum_over_counts(theta, mean[small], 1e4 / size)
        table[:, :, ~small] += _expansion(theta, mean[~small], 1e4 / size)
    table /= n_libraries
    like = inverse_dispersion
    return torch.as_tensor(grid).to(like), torch.as_tensor(table).to(like)


def _sum_over_counts(theta: np.ndarray, mean: np.ndarray, unit: float) -> np.ndarray:
    """Exact moments by the recursion p(y + 1) = p(y) (y + theta) / (y + 1) * mean / (mean + theta); (2, genes, points)."""
    mean = mean[None, :]
    ratio = mean / (mean + theta)
    p = np.exp(theta * (np.log(theta) - np.log(mean + theta)))
    moments, mass = np.zeros((2, *p.shape)), p.copy()
    first = 0  # means rise along the grid, so that columns are finished from the left
    for y in range(1, 4000):
        p = p * ((y - 1 + theta) / y) * ratio[:, first:]
        value = np.log1p(unit * y)
        moments[0, :, first:] += value * p
        moments[1, :, first:] += value * value * p
        mass[:, first:] += p
        if y % 8 == 0:
            done = int(np.argmin(np.append((1 - mass[:, first:]).max(axis=0) < 1e-8, False)))
            first, p = first + done, p[:, done:]
            if first == mass.shape[1]:
                break
    return moments


def _expansion(theta: np.ndarray, mean: np.ndarray, unit: float, nodes: int = 48) -> np.ndarray:
    """Gamma quantile nodes for the rate, second-order expansion of the Poisson around each; (2, genes, points)."""
    levels, weights = np.polynomial.legendre.leggauss(
        nodes
    )  # close to 0 and 1, where log(rate) has its tails
    levels, weights = (levels + 1) / 2, weights / 2
    factors = stats.gamma.ppf(levels[None, :], a=theta) / theta  # (genes, nodes)
    factors /= (weights * factors).sum(1, keepdims=True)
    out = np.zeros((2, theta.shape[0], len(mean)))
    for k, weight in enumerate(weights):
        rate = factors[:, [k]] * mean[None, :]
        value, slope = np.log1p(unit * rate), unit / (1 + unit * rate)
        out[0] += weight * (value - 0.5 * rate * slope**2)
        out[1] += weight * (value**2 + rate * slope**2 * (1 - value))
    return out


def interpolate(grid: Tensor, table: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Linear interpolation of both rows of the table at eta (..., genes)."""
    step = grid[1] - grid[0]
    position = ((eta - grid[0]) / step).clamp(0, len(grid) - 1.001)
    low = position.long()
    share = position - low
    index = low.reshape(-1, eta.shape[-1]).T  # (genes, rows): gather along the points of each gene
    out = []
    for row in table:
        a, b = torch.gather(row, 1, index), torch.gather(row, 1, index + 1)
        flat = share.reshape(-1, eta.shape[-1]).T
        out.append((a + flat * (b - a)).T.reshape(eta.shape))
    return out[0], out[1]
