"""EM for a spike-and-slab mixture of noisy scores: where the gates of a warm start stand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SpikeSlabFit:
    """member (N, K): probability that a score is from the slab; rate (K,) of a column, pi_k; acting: mean of a_n.

    Expected numbers of openings and of the others, where a gate opens if both its column and its row do: open_columns,
    shut_columns (K,), open_rows, shut_rows (N, 1).
    """

    member: Tensor
    rate: Tensor
    open_columns: Tensor
    shut_columns: Tensor
    open_rows: Tensor
    shut_rows: Tensor
    acting: Tensor


def spike_slab_fit(
    scores: Tensor, variance: Tensor, prior: tuple[float, float] = (1.0, 1.0), rows: tuple[float, float] | None = None,
    row_strength: float = 1.0, iterations: int = 300,
) -> SpikeSlabFit:  # fmt: skip
    """scores (N, K) ~ a_n pi_k Normal(0, slab_k + variance) + (1 - a_n pi_k) Normal(0, variance), by EM.

    `variance` (N, K) is the sampling variance of each score. pi_k has a Beta `prior` and is at its mode. a_n ~ Beta of
    `row_strength` and mean alpha is at its posterior mean, and so is alpha, with the Beta prior `rows`; without that a_n = 1.
    """
    before, among = max(prior[0] - 1, 0.0), max(prior[0] - 1, 0.0) + max(prior[1] - 1, 0.0)
    v = variance
    rate = torch.full_like(scores[0], 0.5)
    active = torch.full_like(scores[:, :1], 1.0 if rows is None else 0.7)
    acting = active.mean()
    slab = ((scores.square() - v).mean(0) / 0.5).clamp_min(1e-6)
    member = by_column = by_row = torch.full_like(scores, 0.5)
    for _ in range(iterations):
        p = (active * rate).clamp(1e-4, 1 - 1e-4)
        gain = scores.square() * (1 / v - 1 / (slab + v))
        log_odds = (p / (1 - p)).log() - 0.5 * torch.log1p(slab / v) + 0.5 * gain
        member = torch.sigmoid(log_odds.clamp(-30, 30))
        by_column = member + (1 - member) * rate * (1 - active) / (1 - p)  # a shut gate may be its row's doing
        rate = ((by_column.sum(0) + before) / (len(scores) + among)).clamp(0.02, 0.95 if rows is None else 0.98)
        if rows is not None:
            by_row = member + (1 - member) * active * (1 - rate) / (1 - p)
            active = (by_row.sum(1, keepdim=True) + row_strength * acting) / (scores.shape[1] + row_strength)
            acting = (active.sum() + rows[0]) / (len(scores) + sum(rows))
        mean, spread = scores * slab / (slab + v), slab * v / (slab + v)
        total = (member * (mean.square() + spread)).sum(0)
        slab = (total / member.sum(0).clamp_min(1e-9)).clamp_min(1e-8)
    return SpikeSlabFit(
        member, rate, by_column.sum(0), (1 - by_column).sum(0), by_row.sum(1, keepdim=True), (1 - by_row).sum(1, keepdim=True),
        acting,
    )  # fmt: skip
