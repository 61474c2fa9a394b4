"""Moments of a cell's log expression over a normal linear predictor, by quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# (mean of eta, variance of eta, noise), each (..., genes) -> mean and variance of a cell's log expression
Moments = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
NODES = tuple(zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True))


def over_normal(f: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """E f(eta) and E f(eta)^2 for eta ~ Normal(mean, variance), by Gauss-Hermite quadrature with seven nodes."""
    sd = variance.clamp_min(0).sqrt()
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in NODES:  # in place: of a prediction, these arrays are the largest
        value = f(torch.add(mean, sd, alpha=node))
        first = first.add_(value, alpha=weight)
        second = second.addcmul_(value, value, value=weight)
    return first, second
