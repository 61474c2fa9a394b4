"""q(z_r | x, u): one normal where every cell responds, a mixture of two where some escape."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence
from torch.nn.functional import logsigmoid

from ..story.latents import StructuralMixture, StructuralNormal, times
from ..story.model import Cells, Globals

if TYPE_CHECKING:
    from .amortized import AmortizedGuide


@singledispatch
def encode(law: Any, guide: AmortizedGuide, cells: Cells, z_b: Tensor, g: Globals) -> Any:
    """q(z_r | x, u) of cells whose prior p(z_r | z_b, u) is `law`."""
    raise TypeError(f"guides know no posterior of z_r under a {type(law).__name__}")


@encode.register(StructuralNormal)
def _encode_normal(law: StructuralNormal, guide: AmortizedGuide, cells: Cells, z_b: Tensor, g: Globals) -> Any:
    prior = law.mean
    loc = prior + guide.surprise(cells, z_b, g, prior) + guide.correction(cells)
    return dist.Normal(loc, guide.log_scale_responsive.exp() * law.scale).to_event(1)


@encode.register(StructuralMixture)
def _encode_mixture(law: StructuralMixture, guide: AmortizedGuide, cells: Cells, z_b: Tensor, g: Globals) -> Any:
    """One normal around each component as above, weighed by Bayes' rule: exact where everything is linear and normal.

    There the gains are G = S^{-1} W' C with S the covariance of x, C = (I - L)^{-1} (I - L)^{-T} that of z_r and W the loadings,
    so that the log likelihood ratio (W' d)' S^{-1} (e_1 + e_0) / 2 of two means d apart, from which x differs by e_1 and e_0,
    is (I - L) d . (I - L) G' (e_1 + e_0) / 2. The effects enter it as they enter the prior: without effects the components are
    one, and the encoder carries no more of a condition's mean than with one. No gradient goes through the odds, as in EM: where
    they are exact the ELBO is flat in them, and elsewhere it made rates of simulated screens worse, not better.
    """
    means = law.responding.mean, law.escaped.mean
    moves = [guide.surprise(cells, z_b, g, mean) for mean in means]
    correction, scale = guide.correction(cells), guide.log_scale_responsive.exp()
    graph, apart, middle = law.escaped.graph, means[0] - means[1], 0.5 * (moves[0] + moves[1])
    ratio = ((apart - times(apart, graph)) * (middle - times(middle, graph))).sum(-1)
    one, other = (
        dist.Normal(mean + move + correction, scale * part.scale).to_event(1)
        for mean, move, part in zip(means, moves, (law.responding, law.escaped), strict=True)
    )
    return Responding((torch.logit(law.rate) + ratio).detach(), one, other)


class Responding(TorchDistribution):
    """z ~ one with probability sigmoid(logits), else other: both factorised normals of the same shape.

    Samples carry the gradients of the two, but none of the probability, which is to be a constant.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, one: Any, other: Any) -> None:
        self.logits, self.one, self.other = logits, one, other
        super().__init__(one.batch_shape, one.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Responding:
        shape = torch.Size(batch_shape)
        return Responding(self.logits.expand(shape), self.one.expand(shape), self.other.expand(shape))

    @property
    def probability(self) -> Tensor:
        """Of having responded, given the cell: (cells,)."""
        return torch.sigmoid(self.logits)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        responds = torch.bernoulli(self.probability.expand(self._extended_shape(torch.Size(sample_shape))[:-1])).bool()
        one, other = self.one.base_dist, self.other.base_dist
        loc, scale = (torch.where(responds.unsqueeze(-1), *pair) for pair in ((one.loc, other.loc), (one.scale, other.scale)))
        return loc + scale * torch.randn_like(loc)

    def log_prob(self, value: Tensor) -> Tensor:
        one = logsigmoid(self.logits) + self.one.log_prob(value)
        return torch.logaddexp(one, logsigmoid(-self.logits) + self.other.log_prob(value))

    @property
    def mean(self) -> Tensor:
        p = self.probability.unsqueeze(-1)
        return p * self.one.mean + (1 - p) * self.other.mean

    @property
    def variance(self) -> Tensor:
        p = self.probability.unsqueeze(-1)
        between = p * (1 - p) * (self.one.mean - self.other.mean).square()
        return p * self.one.variance + (1 - p) * self.other.variance + between


@torch.distributions.register_kl(Responding, StructuralMixture)  # type: ignore[untyped-decorator]
def _kl_mixture(q: Responding, p: StructuralMixture) -> Tensor:
    """KL of (which component, z): at least that of z, and equal to it where both tell the components of a z with equal odds.

    So the ELBO stays a bound of the marginal likelihood, needs no sampling here, and is tight wherever q is exact.
    """
    r = q.probability
    which = r * (logsigmoid(q.logits) - p.rate.log()) + (1 - r) * (logsigmoid(-q.logits) - torch.log1p(-p.rate))
    return which + r * kl_divergence(q.one, p.responding) + (1 - r) * kl_divergence(q.other, p.escaped)
