"""The other parametrisation: the noise of a latent is what the guide draws, with an encoder that may carry a condition's mean.

    default   q(z_r | x, u) = Normal(E[z_r | z_b, u] + G (x - E[x | z_b, E z_r]) + c(x), s)    E z_r under the drawn effects
    here      q(eps | x, u) = Normal(G (x - E[x | z_b, a_d]) + c(x), s),   z_r = (I - L)^{-1} (B z_b + m_d + eps)

a_d, where the encoder expects the latents of condition d, is a parameter of its own. The paper draws the noise in this way
(its algorithm 1, steps 5 to 7). Nothing ties a_d to the effects: what w loses, the noise can give back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import register_kl

import pvae_pyro as pv
from pvae_pyro.guides import AmortizedGuide
from pvae_pyro.story import Cells, Globals, Story
from pvae_pyro.story.latents import StructuralNormal
from pvae_pyro.story.model import effect_of


@dataclass(frozen=True, eq=False)
class NoiseSite(pv.Amortized):
    """`expected` (conditions, latents): a_d at the start; None: zero, for an encoder without a label to begin with."""

    expected: Tensor | None = None

    def build(self, story: Story) -> NoiseGuide:
        return NoiseGuide(self, story)


class NoiseGuide(AmortizedGuide):
    """`AmortizedGuide`, but for the latents of cells."""

    def __init__(self, config: NoiseSite, story: Story) -> None:
        super().__init__(config, story)
        at = torch.zeros(len(story.design), story.n_latents) if config.expected is None else config.expected
        self.gain_expected = nn.Parameter(at.clone())  # the prefix gives it the networks' step size

    def law(self, cells: Cells, z_b: Tensor, g: Globals) -> tuple[Any, StructuralNormal]:
        """p(z_r | z_b, u), and q(z_r | x, u, globals): the law of z_r when its noise is drawn as above."""
        prior = self.story.responsive_law(g, z_b, cells.condition)
        noise = self.surprise(cells, z_b, g, self.gain_expected[cells.condition]) + self.correction(cells)
        scale = self.log_scale_responsive.exp() * prior.scale
        return prior, StructuralNormal(prior.mean_noise + noise, prior.graph, scale, prior.order)

    def responsive(self, cells: Cells, z_b: Tensor, g: Globals) -> tuple[Tensor, Tensor, Tensor]:
        """Prior mean of z_r, mean of q(z_r | x, u), sd of its noise, each (cells, latents)."""
        prior, q = self.law(cells, z_b, g)
        return prior.mean, q.mean, q.scale

    def forward(self, cells: Cells, index: Tensor | None = None) -> None:
        g = self.assemble(self.sample_globals())
        subsample = index if index is not None else torch.arange(len(cells.condition))
        with pyro.plate("cells", self.story.n_cells, subsample=subsample, dim=-1):
            z_b = pyro.sample("z_b", dist.Normal(*self.background(cells)).to_event(1))
            pyro.sample("z_r", self.law(cells, z_b, g)[1])


@register_kl(StructuralNormal, StructuralNormal)  # type: ignore[untyped-decorator]
def _kl_of_noise(q: StructuralNormal, p: StructuralNormal) -> Tensor:
    """KL where both have the same graph: that of their noises, since z is the same invertible map of either."""
    ratio = (q.scale / p.scale).square()
    return 0.5 * (ratio + ((q.mean_noise - p.mean_noise) / p.scale).square() - 1 - ratio.log()).sum(-1)


def expected_at(start: pv.Fit) -> Tensor:
    """E[z_r | u] at z_b = 0 of every training condition of a fit, (conditions, latents)."""
    story, guide = start.modules()
    with torch.no_grad():
        return effect_of(guide.assemble(guide.central_values()), story.order)
