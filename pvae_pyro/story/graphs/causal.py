"""One sparse directed acyclic graph for every condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates


@dataclass(frozen=True)
class CausalGraph:
    """Sparse directed acyclic graph in a fixed latent order: L_ij = gamma_ij * a_ij for i > j.

    `edge_gates` (edges,)   gamma_ij ~ Bernoulli(density)
    `edge_weights` (edges,) a_ij ~ Normal(0, weight)

    The order is fixed (warm start: latents by decreasing effect size), since with a free decoder only the
    product (I - L)^{-1} w reaches the cells; edges are therefore not identified without sparse effects.
    """

    density: float = 0.05
    weight: float = 0.3

    def __post_init__(self) -> None:
        checks.share(density=self.density)
        checks.positive(weight=self.weight)

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        if plates.edges is None:
            return {"edges": like.new_zeros(0)}
        n = len(like) * (len(like) - 1) // 2
        with plates.edges:
            gamma = pyro.sample("edge_gates", dist.Bernoulli(like.new_full((n,), self.density)))
            a = pyro.sample("edge_weights", dist.Normal(like.new_zeros(n), self.weight))
        return {"edges": gamma * a}

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        return lower_triangle(values["edges"])


def lower_triangle(edges: Tensor) -> Tensor:
    """Strictly lower triangular matrices (..., latents, latents) of edges (..., n (n - 1) / 2), row by row."""
    count = edges.shape[-1]
    n = (1 + int((1 + 8 * count) ** 0.5 + 0.5)) // 2
    rows, columns = torch.tril_indices(n, n, offset=-1, device=edges.device)
    out = edges.new_zeros(*edges.shape[:-1], n * n)
    index = (rows * n + columns).expand(edges.shape)
    return out.scatter(-1, index, edges).unflatten(-1, (n, n))
