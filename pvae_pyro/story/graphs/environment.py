"""Edges of every condition's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .causal import lower_triangle


@dataclass(frozen=True)
class EnvironmentGraph:
    """Sparse edges L(u) and B(u) of every condition's own (paper Eqs. 6-9, where u alone decides them).

    `own_edges` (1 + targets, edges)                   Laplace(0, weight), row 0 those of control
    `own_coupling` (1 + targets, background * latents)  Laplace(0, weight)

    A combination sums the edges of its targets. `ModulatedGraph` says that conditions share a graph and targets strengthen or
    weaken it; here nothing is shared, which takes many cells in every condition. The Laplace prior is what tells z_r from other
    latents of the same span: a transformed z_r would add one constant to the edges of all conditions, and where an
    intervention cuts the edges of its target (theorem, assumption iv) that constant costs the zeros.
    The story's own `coupling` is left to its prior.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        checks.positive(weight=self.weight)

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        rows, out = pyro.plate("environments", plates.targets.size + 1, dim=-2), {}
        sizes = {"own_coupling": plates.background.size * len(like)}
        if plates.edges is not None:
            sizes["own_edges"] = plates.edges.size
        for name, size in sizes.items():
            zero = like.new_zeros(plates.targets.size + 1, size)
            with rows, pyro.plate(f"{name}_plate", size, dim=-1):
                out[name] = pyro.sample(name, dist.Laplace(zero, self.weight))
        return out

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        edges = values.get("own_edges")
        if edges is None:  # a single latent
            return design.new_zeros(len(design), 1, 1)
        return lower_triangle(with_control(design) @ edges)

    def background(self, values: dict[str, Any], design: Tensor, coupling: Tensor) -> Tensor:
        """B(u), (conditions, background, latents)."""
        return (with_control(design) @ values["own_coupling"]).unflatten(-1, coupling.shape)


def with_control(design: Tensor) -> Tensor:
    """Doses with control's own in front, (conditions, 1 + targets)."""
    control = (design == 0).all(-1, keepdim=True).to(design.dtype)
    return torch.cat([control, design], -1)
