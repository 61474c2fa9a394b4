"""Squared distance of random pairs of cells: the paper's alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import checks


@dataclass(frozen=True)
class Pairwise:
    """|mu_b(x) - mu_b(x_0)|^2 on means of q(z_b | x), every perturbed x with a control x_0 of its own, redrawn in every step.

    Paper Eq. 4 (arXiv 2605.19343), weight alpha = 0.05. There it stands beside KL terms of weight 0.01; beside the KL of
    weight 1 here the same balance would be a weight of 5.
    Hazard: for independent x and x_0 its expectation is |difference of the means|^2 + tr Cov(perturbed) + tr Cov(control), so
    that it rewards a background that does not vary between cells, and most of its gradient is spent on that: a
    constant z_b is its optimum. `Centroid` keeps the first term only, `MMD` compares whole laws.
    `matched`: x_0 comes from the batch of x.
    """

    weight: float = 0.05
    matched: bool = False
    paired: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)

    def penalty(self, perturbed: Tensor, control: Tensor) -> Tensor:
        return (perturbed - control).square().sum(-1).mean()
