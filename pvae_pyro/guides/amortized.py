"""The amortized guide: q(z_b | x), q(z_r | x, u) and mean-field globals (paper Eq. 2; design 2 and 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ..story import checks
from ..story.latents import StructuralNormal, times
from ..story.model import Cells, Globals, Story
from ..story.networks import Correction
from .family import Family
from .mean_field import MeanField
from .responsive import encode
from .sites import Site, read_sites


@dataclass(frozen=True)
class Amortized:
    """Amortized latents with mean-field globals.

    `initial_scale`: posterior sd of a global on its unconstrained scale where the warm start gives none.
    """

    initial_scale: float = 0.1

    def __post_init__(self) -> None:
        checks.positive(initial_scale=self.initial_scale)

    def build(self, story: Story) -> AmortizedGuide:
        return AmortizedGuide(self, story)

    def family(self, sites: list[Site]) -> Family:
        """The posterior of the global sites."""
        return MeanField(sites, self.initial_scale)


class AmortizedGuide(nn.Module):
    """Variational family of one story.

    Shared sites: a `Family`, whose sites are read off the story's prior, so that any prior part is served.
    Combinations: the total shift m_d is what cells determine, so eta_d follows from it and the drawn w (`_interaction`), and
    composition is not starved of its signal (design 3.7).
    Cells: q(z_b | x) = Normal(G_b P (x - x_batch) + correction(P x), s_b), without u; the projection P takes out the
    directions in which perturbations move cells (`blind`, from the warm start), so that z_b cannot see a shift along them.
    q(z_r | x, u, globals) = Normal(E[z_r | z_b, u] + G_r (x - E[x | z_b, E z_r]) + correction(x), s_r): centred on the
    prior mean under the *drawn* effects, so the gains cannot carry a condition's mean unless the effects do not.
    """

    def __init__(self, config: Amortized, story: Story) -> None:
        super().__init__()
        self.config = config
        self._story = [story]  # in a list: the story's parameters are its own, not the guide's
        self.family = config.family(read_sites(story.shared))
        n_combinations, n_genes, k = len(story.combinations), len(story.spread), story.n_latents
        if n_combinations:
            self.combination_loc = nn.Parameter(torch.zeros(n_combinations, k))
            self.combination_log_scale = nn.Parameter(
                torch.full((n_combinations, k), config.initial_scale).log()
            )
            self.residual_loc = nn.Parameter(torch.zeros(n_combinations, n_genes))
            self.residual_log_scale = nn.Parameter(story.spread.log().expand(n_combinations, -1) - 3.0)
            self.stretch_loc = nn.Parameter(torch.zeros(n_combinations))
            self.stretch_log_scale = nn.Parameter(torch.full((n_combinations,), config.initial_scale).log())
            self.surprise_loc = nn.Parameter(torch.zeros(n_combinations))
            self.surprise_log_scale = nn.Parameter(torch.full((n_combinations,), 0.2).log())
        n_b, hidden = story.model.background, story.model.hidden
        self.register_buffer(
            "centre", torch.zeros(story.decoder.intercept.shape)
        )  # x of control cells, per batch
        self.register_buffer("gene_sd", torch.ones(n_genes))
        self.register_buffer("blind", torch.zeros(k, n_genes))  # orthonormal in units of gene_sd
        self.gain_background = nn.Parameter(torch.randn(n_genes, n_b) * 0.01)
        self.gain_responsive = nn.Parameter(torch.randn(n_genes, k) * 0.01)
        self.log_scale_background = nn.Parameter(torch.full((n_b,), 0.5).log())
        self.log_scale_responsive = nn.Parameter(torch.full((k,), 0.9).log())
        self.correct_background = Correction(n_genes, hidden, 2 * n_b)
        self.correct_responsive = Correction(n_genes, hidden, k)

    centre: Tensor
    gene_sd: Tensor
    blind: Tensor

    @property
    def story(self) -> Story:
        return self._story[0]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the globals and of the networks: the globals need a step size of their own (design 3.2)."""
        local = ("gain_", "log_scale_background", "log_scale_responsive", "correct_", "family.flow.")
        groups: dict[str, list[nn.Parameter]] = {"globals": [], "networks": []}
        for name, parameter in self.named_parameters():
            groups["networks" if name.startswith(local) else "globals"].append(parameter)
        return groups

    def sample_globals(self) -> dict[str, Tensor]:
        """State every global site and return the values by name."""
        values = self.family.sample()
        story, part = self.story, self.story.model.interaction
        if not story.combinations:
            return values
        shared = self.shared(values)
        with pyro.plate("combinations", len(story.combinations), dim=-1):
            surprise = torch.ones_like(self.surprise_loc)
            if part.surprise_spread > 0:
                law = dist.LogNormal(self.surprise_loc, self.surprise_log_scale.exp())
                surprise = values["surprise"] = pyro.sample("surprise", law)
            stretch = torch.zeros_like(surprise)
            if part.stretch > 0:
                stretch = pyro.sample("stretch", dist.Normal(self.stretch_loc, self.stretch_log_scale.exp()))
                values["stretch"] = stretch
            if part.width > 0:
                loc, scale = self._interaction(shared, surprise, stretch)
                values["interaction"] = pyro.sample("interaction", dist.Normal(loc, scale).to_event(1))
            if part.outside > 0:
                r = dist.Normal(self.residual_loc, self.residual_log_scale.exp()).to_event(1)
                values["residual"] = pyro.sample("residual", r)
        return values

    def shared(self, values: dict[str, Tensor]) -> dict[str, Any]:
        """The story's shared values at these site values, without stating any site."""
        with poutine.block(), poutine.condition(data=values):
            return self.story.shared()

    def _interaction(self, shared: dict[str, Any], surprise: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale (combinations, latents) of q(e_d | all other globals).

        The cells of d say that its total shift m_d is near `combination_loc`, give or take `combination_scale`; composition says
        (1 + stretch) compose(w), give or take the interaction's width. m_d lies between them in proportion to their precisions,
        which is exact for normal laws: a shift that is hardly measured follows the drawn effects instead of holding them back.
        """
        story = self.story
        design = story.design[story.combinations]
        composed = story.compose(shared, design) * (1 + stretch.unsqueeze(-1))
        width = story.model.interaction.latent_width(shared["kappa"], story.typical, design, shared["effects"])
        prior, cells = (width * surprise.unsqueeze(-1)).square(), (2 * self.combination_log_scale).exp()
        share = prior / (prior + cells)
        return share * (self.combination_loc - composed), (share * cells).sqrt()

    def central_values(self) -> dict[str, Tensor]:
        """Posterior centre of every global site by name: medians, and inclusion probabilities for gates."""
        values, story = self.family.centre(), self.story
        if story.combinations:
            surprise, stretch = self.surprise_loc.exp(), self.stretch_loc
            eta, _ = self._interaction(self.shared(values), surprise, stretch)
            values |= {"surprise": surprise, "stretch": stretch, "interaction": eta, "residual": self.residual_loc}
        return values

    def inclusion(self) -> Tensor | None:
        """Probability of the hard gates of the effects, (targets, latents); None without gates."""
        logits = self.family.logits
        return torch.sigmoid(logits["gates"]).detach() if "gates" in logits else None

    def assemble(self, values: dict[str, Tensor]) -> Globals:
        """The story's globals at these site values, without stating any site."""
        with poutine.block(), poutine.condition(data=values):
            return self.story.globals()

    def background(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Location and scale of q(z_b | x), each (cells, background)."""
        x = (cells.expression - self.centre[cells.batch]) / self.gene_sd
        x = x - (x @ self.blind.T) @ self.blind
        shift, widen = self.correct_background(x).chunk(2, -1)
        return (x * self.gene_sd) @ self.gain_background + shift, (self.log_scale_background + widen.clamp(-3, 1)).exp()

    def responsive(self, cells: Cells, z_b: Tensor, g: Globals) -> tuple[Tensor, Tensor, Tensor]:
        """Prior mean of z_r, mean and sd of q(z_r | x, u), each (cells, latents)."""
        law = self.story.responsive_law(g, z_b, cells.condition)
        q = encode(law, self, cells, z_b, g)
        return law.mean, q.mean, q.stddev

    def surprise(self, cells: Cells, z_b: Tensor, g: Globals, prior: Tensor) -> Tensor:
        """What cells say beyond these means of z_r, G_r (x - E[x | z_b, prior]), as a move of z_r (cells, latents)."""
        story, likelihood = self.story, self.story.model.likelihood
        base = story.decoder.intercept[cells.batch]
        eta = base + story.decoder.linear(z_b, prior, g.loadings) + g.residual[cells.condition]
        x = cells.expression - self.centre[cells.batch]
        surprise = x - (likelihood.mean(eta, story.level) - likelihood.mean(base, story.level))
        return surprise @ self.gain_responsive

    def correction(self, cells: Cells) -> Tensor:
        """What the network adds to it, (cells, latents)."""
        return self.correct_responsive((cells.expression - self.centre[cells.batch]) / self.gene_sd)

    def forward(self, cells: Cells, index: Tensor | None = None) -> None:
        g = self.assemble(self.sample_globals())
        n = len(cells.condition)
        subsample = index if index is not None else torch.arange(n)
        with pyro.plate("cells", self.story.n_cells, subsample=subsample, dim=-1):
            loc, scale = self.background(cells)
            z_b = pyro.sample("z_b", dist.Normal(loc, scale).to_event(1))
            law = self.story.responsive_law(g, z_b, cells.condition)
            pyro.sample("z_r", encode(law, self, cells, z_b, g))


@torch.distributions.register_kl(dist.Independent, StructuralNormal)  # type: ignore[untyped-decorator]
def _kl_structural(q: Any, p: StructuralNormal) -> Tensor:
    """KL of a factorised normal from z = L z + mean + eps: closed form, since the density of p needs no determinant."""
    loc, variance = q.base_dist.loc, q.base_dist.scale.square()
    gap = loc - times(loc, p.graph) - p.mean_noise
    identity = torch.eye(p.graph.shape[-1], dtype=loc.dtype, device=loc.device)
    spread = times(variance, (identity - p.graph).square())
    return (
        p.scale.log() - 0.5 * variance.log() + 0.5 * (gap.square() + spread) / p.scale.square() - 0.5
    ).sum(-1)
