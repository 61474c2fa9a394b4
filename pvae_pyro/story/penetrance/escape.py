"""EM for cells of which some escaped: where the penetrance of a warm start stands."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_escape(
    along: Tensor, condition: Tensor, target: Tensor, n_targets: int, a: float, b: float, iterations: int = 200
) -> tuple[Tensor, Tensor]:
    """Posterior centre of rho_p and its sd on the logit scale, each (targets,).

    along (cells,) ~ rho_p Normal(D_d, 1) + (1 - rho_p) Normal(0, 1), rho_p ~ Beta(a, b), with D_d the mean of the responding
    cells of condition d = condition (cells,), whose target is p = target (conditions,). A target without cells keeps its prior.
    """
    t, p = along, target[condition]
    share = torch.full((n_targets,), a / (a + b), dtype=t.dtype)
    count = torch.zeros(len(target), dtype=t.dtype).index_add(0, condition, torch.ones_like(t))
    shift = torch.zeros(len(target), dtype=t.dtype).index_add(0, condition, t) / count.clamp_min(1) * (a + b) / a
    total = torch.zeros(n_targets, dtype=t.dtype).index_add(0, p, torch.ones_like(t))
    for _ in range(iterations):
        responds = _responds(t, share[p], shift[condition])
        share = (a + torch.zeros_like(share).index_add(0, p, responds)) / (a + b + total)
        weight = torch.zeros_like(shift).index_add(0, condition, responds)
        shift = torch.zeros_like(shift).index_add(0, condition, responds * t) / weight.clamp_min(1e-9)
    # information on logit rho_p from the cells' own scores, less what the unknown mean takes of it
    responds = _responds(t, share[p], shift[condition])
    of_share, of_shift = responds - share[p], responds * (t - shift[condition])
    i11, i12, i22 = (
        torch.zeros_like(shift).index_add(0, condition, x) for x in (of_share**2, of_share * of_shift, of_shift**2)
    )
    prior = (a + b) * share * (1 - share)
    known = torch.zeros_like(share).index_add(0, target, (i11 - i12**2 / i22.clamp_min(1e-9)).clamp_min(0))
    return share, (prior + known).rsqrt()


def _responds(t: Tensor, share: Tensor, shift: Tensor) -> Tensor:
    """Probability of having responded, by Bayes' rule."""
    return torch.sigmoid(torch.logit(share) + shift * t - 0.5 * shift**2)
