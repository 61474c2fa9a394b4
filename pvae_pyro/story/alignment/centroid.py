"""Squared distance of condition centroids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import checks


@dataclass(frozen=True)
class Centroid:
    """Squared distance of the condition's centroid from the control's, |mean mu_b(d) - mean mu_b(0)|^2, mean over conditions.

    An unbiased U-statistic of it: products of different cells only, so that (unlike the paper's Eq. 4 on random pairs) the
    spread of z_b inside a condition is not shrunk and small samples are not penalised for their noise; it may be negative.
    """

    weight: float = 5.0

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)

    def penalty(self, perturbed: Tensor, control: Tensor) -> Tensor:
        within = _product_of_different(perturbed)  # (conditions,)
        base = _product_of_different(control)
        cross = (perturbed.mean(1) * control.mean(0)).sum(-1)
        return (within + base - 2 * cross).mean()


def _product_of_different(x: Tensor) -> Tensor:
    """Mean of x_i . x_j over i != j; x is (..., cells, latents) with at least two cells."""
    n = x.shape[-2]
    total = x.sum(-2).square().sum(-1)
    return (total - x.square().sum((-2, -1))) / (n * (n - 1))
