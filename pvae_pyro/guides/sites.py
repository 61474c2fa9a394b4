"""The global sites of a story, read off its prior, so that every family serves every prior."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Site:
    """One global site: `plates` it stands in, value of the prior's `centre`, transform `support` from the real line.

    `spread`: the prior's sd on the real line where it is a normal there, else None.

    Gates (Bernoulli) have no support; `estimator` names how their gradient is estimated. `apart`: in no joint law with others.
    """

    name: str
    plates: tuple[Any, ...]
    centre: Tensor
    support: Transform | None
    event_dim: int
    estimator: str
    spread: Tensor | None
    apart: bool = False

    @property
    def is_gate(self) -> bool:
        return self.support is None


def read_sites(program: Callable[[], Any]) -> list[Site]:
    """Every unobserved site that `program` states, in order. Raises InputError for discrete sites other than Bernoulli gates."""
    with torch.no_grad():
        trace = poutine.trace(program).get_trace()
    sites = []
    nodes: dict[str, Any] = trace.nodes
    for name, node in nodes.items():
        if node["type"] != "sample" or site_is_subsample(node) or node["is_observed"]:
            continue
        prior: Any = node["fn"]
        gate = isinstance(prior, dist.Bernoulli)
        if not gate and prior.support.is_discrete:
            raise InputError(
                f"the site {name!r} is {type(prior).__name__}, but guides know no discrete sites other than Bernoulli; "
                "marginalise it inside the prior."
            )
        centre = prior.probs if gate else _centre(prior, node["value"])
        sites.append(
            Site(
                name=name,
                plates=node["cond_indep_stack"],
                centre=centre.detach().clone(),
                support=None if gate else biject_to(prior.support),
                event_dim=len(prior.event_shape),
                estimator=node["infer"].get("estimator", "reinmax"),
                spread=prior.scale.detach().clone() if isinstance(prior, (dist.Normal, dist.LogNormal)) else None,
                apart=node["infer"].get("apart", False),
            )
        )
    return sites


def _centre(prior: Any, value: Tensor) -> Tensor:
    """Prior mean; where it has none (heavy tails) the median or mode, or else the value drawn, which is surely in the support."""
    if isinstance(prior, dist.LogNormal):
        return prior.loc.exp()  # the median: what the unconstrained scale is centred on
    inner = prior
    while isinstance(inner, dist.Independent):
        inner = inner.base_dist
    ways: tuple[Callable[[], Any], ...] = (
        lambda: prior.mean, lambda: inner.icdf(torch.full_like(value, 0.5)), lambda: prior.mode,
    )  # fmt: skip
    for statistic in ways:
        try:
            centre = torch.as_tensor(statistic())
        except NotImplementedError:
            continue
        if bool(torch.isfinite(biject_to(prior.support).inv(centre)).all()):  # a mode may lie on the edge of the support
            return centre
    return value


class SitePlates:
    """The plates of the sites, made once per run of a guide so that sites share them."""

    def __init__(self) -> None:
        self._made: dict[str, pyro.plate] = {}

    def enter(self, site: Site) -> ExitStack:
        """A context inside all plates of the site."""
        stack = ExitStack()
        for frame in sorted(site.plates, key=lambda f: f.dim):
            if frame.name not in self._made:
                self._made[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
            stack.enter_context(self._made[frame.name])
        return stack
