"""Hard Bernoulli gates and the estimators of their gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

# (logits, uniform numbers) of one shape -> hard gates with a gradient
Draw = Callable[[Tensor, Tensor], Tensor]


class _ReinMax(torch.autograd.Function):
    """s ~ Bernoulli(sigmoid(logits)); d/dlogits is estimated by the trapezoid rule on the slope in s (arXiv 2304.08612)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, uniform: Tensor) -> Tensor:
        p = torch.sigmoid(logits)
        s = (uniform < p).to(logits.dtype)
        ctx.save_for_backward(p, s)
        return s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p, s = ctx.saved_tensors
        # f(1) - f(0) = (f'(0) + f'(1)) / 2 for a quadratic f; dividing by the probability of s makes it unbiased.
        return grad * 0.5 * (s * (1 - p) + (1 - s) * p), None


def _straight_through(logits: Tensor, uniform: Tensor) -> Tensor:
    """s ~ Bernoulli(sigmoid(logits)); d/dlogits is the slope at the s drawn, times that of the probability (arXiv 1308.3432)."""
    p = torch.sigmoid(logits)
    s = (uniform < p).to(p.dtype)
    return s + (p - p.detach())  # the bracket is exactly zero


def gate_law(estimator: str, logits: Tensor, pinned: Tensor | None = None) -> GateBernoulli:
    """The posterior of gates under one of the estimators that `SpikeSlab` names.

    `pinned` gates have that value instead of a draw: the configuration whose turn it is in a sum over all of them.
    """
    if pinned is not None:
        return GateBernoulli(logits, lambda logits, uniform: pinned.expand_as(logits))
    return GateBernoulli(logits, _straight_through if estimator == "straight-through" else _ReinMax.apply)


def configurations(logits: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Every configuration of these gates by name, with its probability (differentiable)."""
    sizes = [one.numel() for one in logits.values()]
    law = torch.distributions.Bernoulli(logits=torch.cat([one.reshape(-1) for one in logits.values()]))
    for bits in product((0.0, 1.0), repeat=sum(sizes)):
        flat = law.logits.new_tensor(bits)
        pieces = zip(logits.items(), flat.split(sizes), strict=True)
        yield {name: piece.reshape(one.shape) for (name, one), piece in pieces}, law.log_prob(flat).sum().exp()


class GateBernoulli(dist.Bernoulli):  # type: ignore[misc]
    """Bernoulli with hard samples and an estimated gradient: how a sample is drawn, and what gradient it has, is `draw`.

    The default, ReinMax, is exact in expectation for losses quadratic in each gate. The log mass is that of the hard gate, so
    the ELBO is that of the hard model, not of a relaxed surrogate.
    """

    has_rsample = True

    def __init__(self, logits: Tensor, draw: Draw = _ReinMax.apply, validate_args: bool | None = None) -> None:
        self.draw = draw
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> GateBernoulli:
        return GateBernoulli(self.logits.expand(torch.Size(batch_shape)), self.draw, validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        logits = self.logits.expand(shape)
        return self.draw(logits, torch.rand(shape, dtype=logits.dtype, device=logits.device))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


@register_kl(GateBernoulli, dist.Bernoulli)  # type: ignore[untyped-decorator]
def _kl_gate(q: GateBernoulli, p: dist.Bernoulli) -> Tensor:
    return kl_divergence(
        torch.distributions.Bernoulli(logits=q.logits), torch.distributions.Bernoulli(logits=p.logits)
    )
