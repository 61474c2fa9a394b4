"""Edges that the user knows, with weights that are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ...errors import InputError
from .. import checks
from ..plates import Plates


@dataclass(frozen=True)
class FixedGraph:
    """Edges as given, absent ones exactly zero: L_ts = a_e for the edge e = (source s, target t).

    `edge_weights` (given edges,) a_e ~ Normal(0, weight), in the order given; no site without edges

    `edges` are pairs (source, target) of latent numbers from 0, in TOML `edges = [[0, 3], [2, 1]]`. Any acyclic graph is served,
    also against the latent order (latents are numbered by decreasing effect size): `order` tells the story how to sort latents
    from causes to effects, and nothing else sees that order. What a latent is shows in a first fit (`Fit.effects_table`); with
    the same cells, settings and seed, the start gives it the same number again.
    """

    edges: tuple[tuple[int, int], ...] = ()
    weight: float = 0.3

    def __post_init__(self) -> None:
        checks.positive(weight=self.weight)
        edges = tuple(_pair(edge) for edge in self.edges)
        object.__setattr__(self, "edges", edges)  # a list, as JSON and TOML give it, is meant the same
        twice = [edge for i, edge in enumerate(edges) if edge in edges[:i]]
        if twice:
            raise InputError(f"edges holds {_shown(twice[0])} more than once; name every edge one time.")
        try:
            self._sorted(0)
        except CycleError as problem:
            loop = " -> ".join(map(str, problem.args[1]))
            raise InputError(f"edges must not run in a circle, but {loop} does; leave out one of these edges.") from None

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        self._check(len(like))
        out = {"graph": like.new_zeros(len(like), len(like))}
        if self.edges:
            with pyro.plate("given_edges", len(self.edges), dim=-1):
                a = pyro.sample("edge_weights", dist.Normal(like.new_zeros(len(self.edges)), self.weight))
            source, target = like.new_tensor(self.edges).long().T
            out["graph"] = out["graph"].index_put((target, source), a)
        return out

    def matrix(self, values: dict[str, Any], design: Tensor) -> Tensor:
        graph: Tensor = values["graph"]
        return graph

    def order(self, latents: int) -> Sequence[int]:
        """All latents from causes to effects; raises InputError for an edge of a latent that does not exist."""
        self._check(latents)
        return range(latents) if all(s < t for s, t in self.edges) else self._sorted(latents)

    def _sorted(self, latents: int) -> list[int]:
        causes: dict[int, set[int]] = {k: set() for k in range(latents)}
        for source, target in self.edges:
            causes.setdefault(target, set()).add(source)
        return list(TopologicalSorter(causes).static_order())

    def _check(self, latents: int) -> None:
        for edge in self.edges:
            if max(edge) >= latents:
                raise InputError(
                    f"edges holds {_shown(edge)}, but the model has {latents} responsive latents, numbered from 0; "
                    "correct the edge or raise responsive."
                )


def _shown(edge: Sequence[int]) -> str:
    return f"({edge[0]}, {edge[1]})"


def _pair(edge: Any) -> tuple[int, int]:
    """An edge as two whole numbers."""
    if isinstance(edge, list | tuple) and len(edge) == 2 and all(type(k) is int and k >= 0 for k in edge):
        return edge[0], edge[1]
    raise InputError(f"edges must hold pairs (source, target) of latent numbers from 0, but {edge!r} was given; correct it.")
