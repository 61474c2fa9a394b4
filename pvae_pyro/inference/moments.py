"""Moments of latents in every condition, and the structural equations that they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Groups:
    """Cells by condition: `rows` and `mask` (conditions, most cells), `count` (conditions,)."""

    rows: Tensor
    mask: Tensor
    count: Tensor

    @classmethod
    def of(cls, condition: Tensor) -> Groups:
        members = [torch.nonzero(condition == i).flatten() for i in range(int(condition.max()) + 1)]
        rows = nn.utils.rnn.pad_sequence(members, batch_first=True)
        count = torch.tensor([len(m) for m in members])
        mask = torch.arange(rows.shape[1]).expand(rows.shape) < count.unsqueeze(1)
        return cls(rows, mask.unsqueeze(-1).float(), count.float())

    def means(self, z: Tensor) -> Tensor:
        """(conditions, n) of z (cells, n)."""
        return (z[self.rows] * self.mask).sum(1) / self.count.unsqueeze(1)

    def covariances(self, z: Tensor) -> Tensor:
        """(conditions, n, n) of z (cells, n), a little of the identity added."""
        own = z[self.rows]
        mean = (own * self.mask).sum(1, keepdim=True) / self.count.view(-1, 1, 1)
        gap = (own - mean) * self.mask
        return gap.mT @ gap / (self.count - 1).clamp_min(1).view(-1, 1, 1) + 1e-4 * torch.eye(z.shape[1])


def structure(groups: Groups, z: Tensor, b: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_r = L z_r + B z_b + (I - L) t + noise in every condition, from cells z = (z_b, z_r), `b` the number of z_b.

    Returns t (conditions, k), L (conditions, k, k), variances of the noise (conditions, k) and B (conditions, k, b).
    """
    covariance, mean = groups.covariances(z), groups.means(z)
    slope = torch.linalg.solve(covariance[:, :b, :b], covariance[:, :b, b:]).mT if b else z.new_zeros(len(mean), z.shape[1], 0)
    rest = covariance[:, b:, b:] - slope @ covariance[:, :b, b:]
    root = torch.linalg.cholesky(rest)
    sd = root.diagonal(dim1=-2, dim2=-1)
    unit = torch.linalg.inv(root / sd.unsqueeze(1))  # I - L
    intercept = mean[:, b:] - (slope @ mean[:, :b].unsqueeze(-1)).squeeze(-1)
    return intercept, torch.eye(unit.shape[-1]) - unit, sd.square(), unit @ slope


def blind_axes(y: Tensor, condition: Tensor) -> Tensor:
    """Rotation (size, size) of whitened cells y whose first columns change least in mean and covariance between conditions."""
    size = y.shape[1]
    moved = y.new_zeros(size, size)
    for code in condition.unique():
        rows = y[condition == code]
        mean = rows.mean(0)
        gap = (rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1) - torch.eye(size)
        moved += torch.outer(mean, mean) + gap @ gap
    return torch.linalg.eigh(moved).eigenvectors
