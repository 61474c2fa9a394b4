"""Globals by MCMC instead of a variational family, for stories in which the latents of cells integrate out."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import SigmoidTransform

from ..errors import InputError
from ..story import Story, checks
from .amortized import AmortizedGuide
from .low_rank import LowRank
from .sites import SitePlates, read_sites

SLABS = {"gates": "effects", "edge_gates": "edge_weights"}  # what a gate lets through, which is moved with it


@dataclass(frozen=True, kw_only=True)
class Sampled(LowRank):
    """The guide `LowRank` by SVI, then MCMC of all globals from its draws, with the latents of cells integrated out.

    What is kept are the draws: exact but for the length of the chains and the decoder, which stays as trained. It needs a story
    that is linear and normal given its globals (`Gaussian(link="identity")`, no penetrance, one graph) and a small screen: the
    cost grows with conditions times genes squared, of which it takes at most 100,000. See `inference.sampling`.
    `chains`: run together; `burn_in`: iterations of each before any is kept; `kept`: draws of each, `thin` iterations apart.
    """

    chains: int = 25
    burn_in: int = 200
    kept: int = 8
    thin: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(2, chains=self.chains)
        checks.whole(4, kept=self.kept)  # R-hat needs four draws of a chain
        checks.whole(6, burn_in=self.burn_in)
        checks.whole(1, thin=self.thin)

    def build(self, story: Story) -> SampledGuide:
        return SampledGuide(self, story)


class SampledGuide(AmortizedGuide):
    """`LowRank` until `keep` is called, afterwards one of the kept draws of all sites.

    The family and the laws of combinations then have the moments of these draws, for whoever reads centres and gates there.
    """

    sampled: Tensor
    r_hat: Tensor

    def __init__(self, config: Sampled, story: Story) -> None:
        super().__init__(config, story)
        self.all_sites = read_sites(story.globals)
        normal = {site.name for site in self.all_sites if site.spread is not None}
        if unknown := [site.name for site in self.all_sites if site.is_gate and SLABS.get(site.name) not in normal]:
            raise InputError(f"no move is known for the gates {', '.join(unknown)} without a normal slab; take another guide.")
        self.register_buffer("sampled", torch.tensor(False))
        self.register_buffer("r_hat", torch.tensor(float("nan")))  # of the log density, after burn-in
        for site in self.all_sites:
            self.register_buffer(f"drawn_{site.name}", torch.zeros(config.chains * config.kept, *site.centre.shape))

    def sample_globals(self) -> dict[str, Tensor]:
        if not self.sampled:
            return super().sample_globals()
        draws, plates, values = self.draws(), SitePlates(), {}
        row = int(torch.randint(len(next(iter(draws.values()))), ()))
        for site in self.all_sites:
            with plates.enter(site):
                values[site.name] = pyro.sample(site.name, Delta(draws[site.name][row], event_dim=site.event_dim))
        return values

    def draws(self) -> dict[str, Tensor]:
        """All kept draws by site, (draws, ...)."""
        return {site.name: getattr(self, f"drawn_{site.name}") for site in self.all_sites}

    @torch.no_grad()
    def keep(self, draws: list[dict[str, Tensor]], r_hat: float) -> None:
        """Take these draws, and R-hat of their log density, for the posterior from now on."""
        shares = {site.name for site in self.all_sites if isinstance(site.support, SigmoidTransform)}
        for name, buffer in self.draws().items():
            values, inside = torch.stack([draw[name] for draw in draws]), torch.finfo(buffer.dtype)
            if name in shares:  # single precision would round them to 0 and 1, which have no density
                values = values.clamp(inside.tiny, 1 - inside.eps)
            buffer.copy_(values)
        self.sampled.fill_(True)
        self.r_hat.fill_(r_hat)
        shared = {site.name: site for site in self.family.sites.values()}
        for name, values in self.draws().items():
            if name in shared and shared[name].support is None:
                self.family.place(name, values.mean(0))
            elif name in shared:
                u = shared[name].support.inv(values)  # type: ignore[union-attr]
                self.family.loc[name].copy_(u.mean(0))
                self.family.log_scale[name].copy_(u.std(0).clamp_min(1e-6).log())
        if self.story.combinations:
            self._follow_combinations()

    def _follow_combinations(self) -> None:
        """Centres and spreads of what is known of single combinations."""
        drawn = self.draws()
        logs = {"surprise": drawn["surprise"].log()} if "surprise" in drawn else {}
        named = {"surprise": logs.get("surprise"), "stretch": drawn.get("stretch"), "residual": drawn.get("residual")}
        named["combination"] = self._totals(drawn) if "interaction" in drawn else None
        for name, values in named.items():
            if values is not None:
                getattr(self, f"{name}_loc").copy_(values.mean(0))
                getattr(self, f"{name}_log_scale").copy_(values.std(0).clamp_min(1e-6).log())

    def _totals(self, drawn: dict[str, Tensor]) -> Tensor:
        """Total shift of every combination (draws, combinations, latents)."""
        rows = range(len(drawn["interaction"]))
        values = [{name: part[row] for name, part in drawn.items()} for row in rows]
        return torch.stack([self.assemble(one).shift[self.story.combinations] for one in values])
