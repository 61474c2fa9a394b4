"""EM for a spike-and-slab mixture of noisy scores: where the gates of a warm start stand."""

from __future__ import annotations

import torch
from torch import Tensor


def spike_slab_fit(
    scores: Tensor, variance: Tensor, prior: tuple[float, float] = (1.0, 1.0), iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Inclusion probabilities (N, K) and rates (K,) of scores ~ pi Normal(0, slab + variance) + (1 - pi) Normal(0, variance).

    `variance` (N, K) is the sampling variance of each score; pi and slab of each column by EM, pi under a Beta `prior`.
    """
    before, among = max(prior[0] - 1, 0.0), max(prior[0] - 1, 0.0) + max(prior[1] - 1, 0.0)
    v = variance
    rate = torch.full_like(scores[0], 0.5)
    slab = ((scores.square() - v).mean(0) / 0.5).clamp_min(1e-6)
    member = torch.full_like(scores, 0.5)
    for _ in range(iterations):
        gain = scores.square() * (1 / v - 1 / (slab + v))
        log_odds = (rate / (1 - rate)).log() - 0.5 * torch.log1p(slab / v) + 0.5 * gain
        member = torch.sigmoid(log_odds.clamp(-30, 30))
        rate = ((member.sum(0) + before) / (len(member) + among)).clamp(0.02, 0.95)
        mean, spread = scores * slab / (slab + v), slab * v / (slab + v)
        total = (member * (mean.square() + spread)).sum(0)
        slab = (total / member.sum(0).clamp_min(1e-9)).clamp_min(1e-8)
    return member, rate
