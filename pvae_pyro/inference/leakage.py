"""Effect leakage: does the perturbation hide in the background or in the noise? (design 3.4)"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..guides import AmortizedGuide
from .cells import CellStore


@torch.no_grad()
def measure_leakage(guide: AmortizedGuide, store: CellStore, rows: np.ndarray) -> dict[str, float]:
    """Leakage, active units and gate entropy from the posterior means of these cells.

    leakage_background: variance of condition means of E[z_b | x] around the control's, over their variance inside conditions;
    sampling noise taken off, so 0 is no leakage.
    leakage_responsive: share of the shift of E[z_r | x, u] that the prior under the effects does not make, again without
    sampling noise: 0 when w explains all, 1 when w is zero.
    active_units: responsive latents whose effects vary by more than 0.1 control-cell sd between targets.
    gate_entropy: mean entropy of the gates in nats (0 without gates).
    """
    story = guide.story
    g = guide.assemble(guide.central_values())
    z_b, z_r, prior = [], [], []
    for start in range(0, len(rows), 2048):
        cells = store.take(rows[start : start + 2048])
        loc, _ = guide.background(cells)
        mean, responsive, _ = guide.responsive(cells, loc, g)
        z_b.append(loc)
        z_r.append(responsive)
        prior.append(mean)
    condition = store.condition[torch.as_tensor(rows, device=store.device)]
    control = int(torch.nonzero((story.design == 0).all(-1)).flatten()[0])
    b_shift, b_noise, b_within = _shifts(torch.cat(z_b), condition, control, len(story.design))
    gap, gap_noise, _ = _shifts(torch.cat(z_r) - torch.cat(prior), condition, control, len(story.design))
    total, total_noise, _ = _shifts(torch.cat(z_r), condition, control, len(story.design))
    background = (b_shift.square() - b_noise).mean(0).clamp_min(0).sum() / b_within.sum().clamp_min(1e-9)
    unexplained = (gap.square() - gap_noise).sum().clamp_min(0)
    moved = (total.square() - total_noise).sum()
    # a model without any responsive shift explains nothing
    responsive_share = float(unexplained / moved) if float(moved) > 1e-9 else 1.0
    entropy = 0.0
    if (p := guide.inclusion()) is not None:
        p = p.clamp(1e-6, 1 - 1e-6)
        entropy = float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
    active = (
        float(((g.effects.std(0) * story.unit) > 0.1).sum()) if len(g.effects) > 1 else float(story.n_latents)
    )
    return {
        "leakage_background": float(background),
        "leakage_responsive": responsive_share,
        "active_units": active,
        "gate_entropy": entropy,
    }


def _shifts(z: Tensor, condition: Tensor, control: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shift of each condition's mean from control, its sampling variance, and the variance inside conditions."""
    count = torch.zeros(n, device=z.device).index_add_(0, condition, torch.ones(len(z), device=z.device))
    mean = torch.zeros(n, z.shape[1], device=z.device).index_add_(0, condition, z) / count.clamp_min(
        1
    ).unsqueeze(1)
    within = (z - mean[condition]).square().sum(0) / max(len(z) - int((count > 0).sum()), 1)
    others = torch.nonzero((count > 0) & (torch.arange(n, device=z.device) != control)).flatten()
    noise = within * (1 / count[others] + 1 / count[control].clamp_min(1)).unsqueeze(1)
    return mean[others] - mean[control], noise, within
