"""Log density of measured pseudobulks given the draws of a prediction."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .recipe import Recipe

_FLOOR = 1e-6  # share of a gene's variance between cells that is always its own: a density needs some


def log_density(recipe: Recipe, measured: NDArray[np.float64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """log p(measured pseudobulk of a condition | draw), (draws, conditions), joint over genes.

    measured (conditions, genes): means of n_cells cells; columns (genes,): which of the fitted genes these are. The law is
    that of `Recipe.blocks` with n_cells >= 30, and its normal approximation below:

        y ~ Normal(sum_k rho_k mean_k, sum_k rho_k (F_k' F_k + D_k) / n + sum_{k<l} rho_k rho_l gap_kl gap_kl' / n)

    over the kinds of cells k (all that respond; with penetrance also those that escaped). F_k (background, genes) is what cells
    share, slope times programs, D_k the rest of a gene's variance between cells, gap the difference of the kinds' means. Genes
    of a pseudobulk share programs, so that densities of single genes must not be added up.
    """
    y, chosen = torch.as_tensor(measured, dtype=torch.float64), torch.as_tensor(columns)
    with torch.no_grad():
        rows = [_of_condition(recipe, row, y[row], chosen) for row in range(len(recipe.conditions))]
    return torch.stack(rows, 1).numpy()


def _of_condition(recipe: Recipe, row: int, y: Tensor, columns: Tensor) -> Tensor:
    """(draws,) for one condition."""
    story, n = recipe.guide.story, int(recipe.n_cells[row])
    noise = torch.stack([d.shared["noise"] for d in recipe.draws])
    kinds, means, factors = recipe.kinds(row), [], []
    own = y.new_zeros(len(recipe.draws), len(y))
    for kind in kinds:
        mean, spread = (m[:, columns].double() for m in recipe.moments(kind.eta, kind.variance, noise))
        slope = story.model.likelihood.slope(kind.eta, story.level)[:, columns].double()
        programs = kind.pushed.programs_at(columns).double()
        common = slope.square() * kind.pushed.base_variance[:, columns].double()
        rate = kind.rate.double()
        means.append(mean)
        factors.append((rate / n).sqrt().unsqueeze(-1) * slope.unsqueeze(1) * programs)
        own = own + rate / n * torch.maximum(spread - common, _FLOOR * spread)
    centre = torch.stack([kind.rate.double() * mean for kind, mean in zip(kinds, means, strict=True)]).sum(0)
    if len(kinds) == 2:  # how many of the n cells respond is not known
        rate = kinds[0].rate.double()
        factors.append(((rate * (1 - rate) / n).sqrt() * (means[0] - means[1])).unsqueeze(1))
    law = torch.distributions.LowRankMultivariateNormal(centre, torch.cat(factors, 1).mT, own, validate_args=False)
    return law.log_prob(y)
