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

    The order is fixed (warm start: latents by decreasing effect size) and not learnt: with a free decoder only the product
    (I - L)^{-1} w reaches the cells, so that cells of one order are cells of any other, and an order learnt from them would
    report a direction that they do not hold. Predictions do not hang on it: reversed, they move no more than by another seed.
    For the same reason edges are not identified without sparse effects, and with them hardly: in ten simulated linear-Gaussian
    worlds (60 targets, 15 % of the gates open, edges of size 0.8) the gates stayed at their prior and ranked true links no
    better than chance (area under the curve 0.57, standard error 0.06). See `inference.edges.agreeing_edges`.
    """

    density: float = 0.05
    weight: float = 0.3

    def __post_init__(self) -> None:
        checks.share(density=self.density)
        checks.positive(weight=self.weight)

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        if plates.edges is None:
            return {"edges": like.new_zeros(0)}
        gamma, a = state_edges(plates.edges, like, self.density, self.weight)
        return {"edges": gamma * a}

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        return lower_triangle(values["edges"])


def state_edges(edges: pyro.plate, like: Tensor, density: float, weight: float) -> tuple[Tensor, Tensor]:
    """State gates and weights of every edge i > j, each (edges,)."""
    n = len(like) * (len(like) - 1) // 2
    with edges:
        gamma = pyro.sample("edge_gates", dist.Bernoulli(like.new_full((n,), density)))
        a = pyro.sample("edge_weights", dist.Normal(like.new_zeros(n), weight))
    return gamma, a


def lower_triangle(edges: Tensor) -> Tensor:
    """Strictly lower triangular matrices (..., latents, latents) of edges (..., n (n - 1) / 2), row by row."""
    count = edges.shape[-1]
    n = (1 + int((1 + 8 * count) ** 0.5 + 0.5)) // 2
    rows, columns = torch.tril_indices(n, n, offset=-1, device=edges.device)
    out = edges.new_zeros(*edges.shape[:-1], n * n)
    index = (rows * n + columns).expand(edges.shape)
    return out.scatter(-1, index, edges).unflatten(-1, (n, n))
