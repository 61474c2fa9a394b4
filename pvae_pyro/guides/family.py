"""What all families of global posteriors share: centres, spreads, gates, and how sites are stated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Delta
from torch import Tensor, nn
from torch.distributions import register_kl

from ..errors import InputError
from .gates import configurations, gate_law
from .sites import Site, SitePlates

MOST_ENUMERATED = 10  # gates: their sum has two to this power of terms


class Family(nn.Module):
    """A posterior of the global sites. A subclass says in `laws` how the continuous ones are distributed.

    `loc`, `log_scale`: centre and log sd of each site on the unconstrained scale; `logits`: of the gates' probabilities.
    """

    def __init__(self, sites: list[Site], initial_scale: float) -> None:
        super().__init__()
        self.sites = {site.name: site for site in sites}
        self.loc, self.log_scale, self.logits = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self._pinned: dict[str, Tensor] = {}
        for site in sites:
            if site.support is None:
                p = site.centre.clamp(1e-4, 1 - 1e-4)
                self.logits[site.name] = nn.Parameter((p / (1 - p)).log())
            else:
                loc = site.support.inv(site.centre)
                self.loc[site.name] = nn.Parameter(loc.clone())
                self.log_scale[site.name] = nn.Parameter(torch.full_like(loc, initial_scale).log())
        if (n := sum(logits.numel() for logits in self._enumerated().values())) > MOST_ENUMERATED:
            raise InputError(
                f'the estimator "enumerate" sums over all settings of at most {MOST_ENUMERATED} gates, but targets times latents '
                f'make {n} here; use estimator "reinmax" or "straight-through".'
            )

    def laws(self) -> dict[str, Any]:
        """Distribution of every continuous site; a joint family states its auxiliary site here."""
        raise NotImplementedError

    def sample(self) -> dict[str, Tensor]:
        """State every site and return the values by name."""
        values, plates, laws = {}, SitePlates(), self.laws()
        for name, site in self.sites.items():
            gate = site.is_gate
            law = gate_law(site.estimator, self.logits[name], self._pinned.get(name)) if gate else laws[name]
            with plates.enter(site):
                values[name] = pyro.sample(name, law)
        return values

    def _enumerated(self) -> dict[str, Tensor]:
        return {name: logits for name, logits in self.logits.items() if self.sites[name].estimator == "enumerate"}

    def configurations(self) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Every setting of the gates whose estimator is "enumerate", for `pinned`, and its probability; may be none."""
        gates = self._enumerated()
        return list(configurations(gates)) if gates else []

    @contextmanager
    def pinned(self, gates: dict[str, Tensor]) -> Iterator[None]:
        """Inside, these gates have these values in place of a draw."""
        self._pinned = gates
        try:
            yield
        finally:
            self._pinned = {}

    def centre(self) -> dict[str, Tensor]:
        """Posterior centre of every site: medians, and inclusion probabilities for gates."""
        out = {name: torch.sigmoid(logits) for name, logits in self.logits.items()}
        for name, loc in self.loc.items():
            support = self.sites[name].support
            assert support is not None
            out[name] = support(loc)
        return out

    @torch.no_grad()
    def place(self, name: str, value: Any = None, sd: Any = None) -> None:
        """Put a site at `value` (a probability for gates) with sd `sd` on the unconstrained scale; None leaves either.

        A name that the story does not state is passed over: it is a setting that the story keeps fixed.
        """
        site = self.sites.get(name)
        if site is None:
            return
        if site.support is None:
            p = torch.as_tensor(value, dtype=self.logits[name].dtype).clamp(1e-4, 1 - 1e-4)
            self.logits[name].copy_((p / (1 - p)).log())
            return
        if value is not None:
            self.loc[name].copy_(site.support.inv(torch.as_tensor(value, dtype=self.loc[name].dtype)))
        if sd is not None:
            self.log_scale[name].copy_(torch.as_tensor(sd, dtype=self.log_scale[name].dtype).log())


    @torch.no_grad()
    def follow_prior(self, name: str) -> None:
        """Give a site its prior's centre and sd: what is not in the data cannot be better known than before."""
        site = self.sites.get(name)
        if site is not None and site.spread is not None:
            self.place(name, site.centre, site.spread)

    def hold(self, name: str) -> None:
        """Keep a site out of training: it stays as it was placed. An unknown name is passed over, as in `place`."""
        for values in (self.loc, self.log_scale, self.logits):
            if name in values:
                values[name].requires_grad_(False)


class Placed(Delta):
    """A value whose randomness stands at an auxiliary site: `log_density` (..., batch) is -log |d value / d u|.

    Pyro's KL of a Delta leaves log_density out; this one keeps it, so that analytic and sampled terms agree.
    """


@register_kl(Placed, dist.Distribution)  # type: ignore[untyped-decorator]
def _kl_placed(q: Placed, p: Any) -> Tensor:
    return q.log_density - p.log_prob(q.v)


def placed(site: Site, u: Tensor) -> Placed:
    """The site at support(u), with the density that the change of variables costs."""
    assert site.support is not None
    value = site.support(u)
    log_jacobian = site.support.log_abs_det_jacobian(u, value)
    own = log_jacobian.dim() - (value.dim() - site.event_dim)
    if own > 0:  # elementwise transforms of a vector-valued site
        log_jacobian = log_jacobian.sum(tuple(range(-own, 0)))
    return Placed(  # type: ignore[no-untyped-call]
        value, log_density=-log_jacobian, event_dim=site.event_dim)
