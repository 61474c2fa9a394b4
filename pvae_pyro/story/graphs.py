"""Causal graphs among the responsive latents: L strictly lower triangular (paper Eqs. 6-9, 59)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import InputError
from .plates import Plates


class Graph(Protocol):
    """What the story asks of a graph prior: the matrix L, shape (latents, latents), strictly lower triangular."""

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        """State the sites and return L; `like` (latents,) gives size, dtype and device."""
        ...


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
        if not 0 < self.density < 1:
            raise InputError(
                f"density must lie strictly between 0 and 1, but {self.density} was given; try 0.05."
            )
        if not self.weight > 0:
            raise InputError(f"weight must be greater than 0, but {self.weight} was given; try 0.3.")

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        n_latents = len(like)
        graph = like.new_zeros(n_latents, n_latents)
        rows, columns = torch.tril_indices(n_latents, n_latents, offset=-1, device=like.device)
        if plates.edges is None:
            return graph
        with plates.edges:
            gamma = pyro.sample("edge_gates", dist.Bernoulli(like.new_full((len(rows),), self.density)))
            a = pyro.sample("edge_weights", dist.Normal(like.new_zeros(len(rows)), self.weight))
        return graph.index_put((rows, columns), gamma * a)


@dataclass(frozen=True)
class NoGraph:
    """No edges: L = 0, responsive latents are independent given the perturbation and the background."""

    def sample(self, plates: Plates, like: Tensor) -> Tensor:
        return like.new_zeros(len(like), len(like))
