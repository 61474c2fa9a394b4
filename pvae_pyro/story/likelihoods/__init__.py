"""Likelihoods: from the linear predictor eta of a cell to its expression, and the moments that predictions need.

Every likelihood predicts on one scale, log1p(counts per 10,000); `Moments` integrates a normal eta over cells.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from ..plates import Plates
from .gaussian import Gaussian
from .moments import Moments
from .negative_binomial import NegativeBinomial
from .student_t import StudentT


class Likelihood(Protocol):
    """What the story asks of a likelihood.

    The warm start measures the sd of a gene's noise (or, for counts, its inverse dispersion) and takes it for the `noise`; a
    likelihood on expression whose noise is something else has a method `noise_of(sd, level) -> noise`, each (genes,).
    """

    observes: ClassVar[Literal["expression", "counts"]]

    def sample(self, plates: Plates, start: Tensor) -> Tensor:
        """State the per-gene noise site, centred on `start` (genes,), and return it."""
        ...

    def law(self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor) -> dist.TorchDistribution:
        """Distribution of the observed genes of cells: eta (cells, genes), library (cells,), control level (genes,)."""
        ...

    def mean(self, eta: Tensor, level: Tensor) -> Tensor:
        """Expression on the log scale of a cell with this linear predictor (without noise), shape kept."""
        ...

    def slope(self, eta: Tensor, level: Tensor) -> Tensor:
        """d mean / d eta on the log scale, shape kept."""
        ...

    def widest(self, level: Tensor) -> Tensor:
        """Largest sd of eta between control cells that a start may give a gene of this control mean, (genes,)."""
        ...

    def simulate(
        self, eta: Tensor, noise: Tensor, library: Tensor, level: Tensor, generator: torch.Generator
    ) -> Tensor:
        """New cells on the log scale, (cells, genes)."""
        ...

    def moments(self, noise: Tensor, library: Tensor, level: Tensor) -> Moments:
        """Moments of a cell's log expression; `noise` (genes,) typical noise, `library` (cells,) typical libraries."""
        ...


__all__ = ["Gaussian", "Likelihood", "Moments", "NegativeBinomial", "StudentT"]
