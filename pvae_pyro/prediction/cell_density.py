"""Log density of measured cells under a prediction, whose first two moments it uses: for conditions trained or not."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .mixture import RecipeMixture
from .recipe import Kind, Recipe

_FLOOR = 1e-6  # share of a gene's variance between cells that is always its own: a density needs some


@torch.no_grad()
def cell_log_density(
    recipe: Recipe | RecipeMixture, row: int, cells: NDArray[np.floating], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """``log (1/S) sum_s sum_k rho_k N(x; mean_k, F_k' F_k + D_k)`` of cells (n, genes) of one condition, (n,), in nats.

    columns (genes,): which of the fitted genes these are. k: kinds of cells, of share rho_k (all that respond; with penetrance
    also those that escaped). F_k (background + latents + batches, genes) is what genes share, slope times programs of the
    background, of the noise of responsive latents and of batches, D_k the rest of each gene's variance. Exact for a Gaussian
    likelihood with identity link and one batch; else the normal law with the prediction's mean and covariance, on the scale of
    log expression whatever the likelihood, so that values of different likelihoods can be compared. Its mean over cells is a
    proper score of these moments (Dawid & Sebastiani 1999).
    """
    parts = recipe.parts if isinstance(recipe, RecipeMixture) else (recipe,)
    x, chosen = torch.as_tensor(np.asarray(cells), dtype=torch.float64), torch.as_tensor(columns)
    logs = torch.cat([_of_draws(part, row, x, chosen) for part in parts])
    return (torch.logsumexp(logs, 0) - math.log(len(logs))).numpy()


def _of_draws(recipe: Recipe, row: int, x: Tensor, columns: Tensor) -> Tensor:
    """(draws, cells)."""
    laws = [(kind.rate.double(), *_law(recipe, row, kind, columns)) for kind in recipe.kinds(row)]
    out = []
    for number in range(len(recipe.draws)):  # one at a time: factors of all draws would be large
        parts = [
            rate[number].log() + torch.distributions.LowRankMultivariateNormal(
                mean[number], factors(number).mT, own[number], validate_args=False
            ).log_prob(x)
            for rate, mean, factors, own in laws
        ]  # fmt: skip
        out.append(torch.logsumexp(torch.stack(parts), 0))
    return torch.stack(out)


def _law(recipe: Recipe, row: int, kind: Kind, columns: Tensor):  # type: ignore[no-untyped-def]
    """Means (draws, genes), the factors (rank, genes) of a draw by its number, and own variances (draws, genes)."""
    story, share = recipe.guide.story, recipe.batch_share(row).double()
    noise = torch.stack([d.shared["noise"] for d in recipe.draws])
    mean, spread = (m[:, columns].double() for m in recipe.moments(kind.eta, kind.variance, noise))
    slope = story.model.likelihood.slope(kind.eta, story.level)[:, columns].double()
    programs, responsive, batches = kind.pushed.programs, kind.pushed.responsive, story.decoder.intercept[:, columns].double()

    def factors(number: int) -> Tensor:
        scaled = kind.v[number].sqrt().unsqueeze(-1) * responsive[number]
        moved = share[number].sqrt().unsqueeze(-1) * (batches - share[number] @ batches)
        return slope[number] * torch.cat([programs[number][:, columns].double(), scaled[:, columns].double(), moved])

    common = slope.square() * kind.variance[:, columns].double()
    return mean, factors, torch.maximum(spread - common, _FLOOR * spread)
