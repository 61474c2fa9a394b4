"""U-statistics: means over pairs of different cells, which leave out what a cell shares with itself."""

from __future__ import annotations

from torch import Tensor


def mean_of_different(values: Tensor) -> Tensor:
    """Mean of values[..., i, j] over i != j, (...,); needs at least two cells."""
    n = values.shape[-1]
    return (values.sum((-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def product_of_different(x: Tensor) -> Tensor:
    """Mean of x_i . x_j over i != j, (...,), without making all products; x is (..., cells, latents)."""
    n = x.shape[-2]
    total = x.sum(-2).square().sum(-1)
    return (total - x.square().sum((-2, -1))) / (n * (n - 1))
