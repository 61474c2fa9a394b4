"""Squared distance of condition centroids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import checks
from .different import product_of_different


@dataclass(frozen=True)
class Centroid:
    """Squared distance of the condition's centroid from the control's, |mean mu_b(d) - mean mu_b(0)|^2, mean over conditions.

    An unbiased U-statistic of it: products of different cells only, so that (unlike the paper's Eq. 4 on random pairs) the
    spread of z_b inside a condition is not shrunk and small samples are not penalised for their noise; it may be negative.
    `matched`: the control centroid is that of controls in the condition's own mixture of batches, so that a condition is not
    penalised for the batches it was measured in.
    """

    weight: float = 5.0
    matched: bool = False

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)

    def penalty(self, perturbed: Tensor, control: Tensor) -> Tensor:
        if control.dim() == 3:  # a perturbed cell and its own control are one observation
            return product_of_different(perturbed - control).mean()
        cross = (perturbed.mean(1) * control.mean(0)).sum(-1)
        return (product_of_different(perturbed) + product_of_different(control) - 2 * cross).mean()
