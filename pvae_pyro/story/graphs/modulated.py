"""Edges whose strength depends on the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
from torch import Tensor

from .. import checks
from ..composition.scale import log_normal
from ..plates import Plates
from .causal import lower_triangle, state_edges


@dataclass(frozen=True)
class ModulatedGraph:
    """Sparse directed acyclic graph whose edges the targets of a condition strengthen or weaken (paper Eqs. 6-9, 59).

    L(u)_ij = gamma_ij * (a_ij + lambda * sum_p u_p d_pij) for i > j,    B(u)_bk = B_bk + mu * sum_p u_p c_pbk

    `edge_gates`, `edge_weights` (edges,)   gamma and a, as `CausalGraph` has them, in the same latent order
    `modulation_scale` ()                   lambda ~ LogNormal(log modulation, scale_spread)
    `edge_modulation` (targets, edges)      d_pij  ~ Normal(0, 1)
    `coupling_scale` ()                     mu     ~ LogNormal(log coupling, scale_spread)
    `coupling_modulation` (targets, background * latents)  c_pbk ~ Normal(0, 1)

    u is multi-hot: a combination sums what its targets do to an edge, and control has the edges of `CausalGraph`. The third
    thing that depends on u in the paper, the noise variance v(u), belongs to the story.
    The modulation stands inside the gate, not beside it (L0 + sum_p u_p L_p with gates of its own): one graph says which latent
    drives which, a target says how strongly, and an absent edge is absent in every condition. Edges of a condition's own would
    be as many as its effects with nothing but its own cells to tell the two apart. Unit normals times a learnt scale, because
    what cells say nothing about then stays at its prior, and the scale alone decides how much modulation there is.
    `modulation` or `coupling` = 0 takes that part out of the program; without both this is `CausalGraph`.
    """

    density: float = 0.05
    weight: float = 0.3
    modulation: float = 0.1
    coupling: float = 0.03
    scale_spread: float = 0.5

    at_prior: ClassVar = ("modulation_scale", "edge_modulation", "coupling_scale", "coupling_modulation")

    def __post_init__(self) -> None:
        checks.share(density=self.density)
        checks.positive(weight=self.weight)
        checks.not_negative(modulation=self.modulation, coupling=self.coupling, scale_spread=self.scale_spread)

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        n_targets, out = plates.targets.size, {"edges": like.new_zeros(0)}
        if plates.edges is not None:
            gamma, a = state_edges(plates.edges, like, self.density, self.weight)
            out["edges"] = gamma * a
            if self.modulation > 0:
                scale = log_normal("modulation_scale", self.modulation, self.scale_spread, like)
                with plates.targets, plates.edges:
                    d = pyro.sample("edge_modulation", dist.Normal(like.new_zeros(n_targets, len(a)), 1.0))
                out["modulation"] = scale * gamma * d
        if self.coupling > 0:
            scale = log_normal("coupling_scale", self.coupling, self.scale_spread, like)
            n = plates.background.size * len(like)
            with plates.targets, pyro.plate("background_edges", n, dim=-1):
                c = pyro.sample("coupling_modulation", dist.Normal(like.new_zeros(n_targets, n), 1.0))
            out["coupling"] = scale * c
        return out

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        edges: Tensor = values["edges"]
        if "modulation" in values:
            edges = edges + _dosed(design, values["modulation"])  # (conditions, edges)
        return lower_triangle(edges)

    def background(self, values: dict[str, Any], design: Tensor, coupling: Tensor) -> Tensor:
        """B(u), (conditions, background, latents), or B as it is where it is not modulated."""
        if "coupling" not in values:
            return coupling
        return coupling + _dosed(design, values["coupling"]).unflatten(-1, coupling.shape)


def _dosed(design: Tensor, values: Tensor) -> Tensor:
    """sum_p u_p values_p, (conditions, n), over targets present: absent ones must not even move the last bits of a prediction."""
    present = design.any(0).nonzero().flatten()
    return design[:, present] @ values.index_select(0, present)
