"""Hard Bernoulli gates and the estimators of their gradient."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence, register_kl


class _ReinMax(torch.autograd.Function):
    """s ~ Bernoulli(sigmoid(logits)); d/dlogits is estimated by the trapezoid rule on the slope in s."""

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


def gate_law(estimator: str, logits: Tensor) -> Any:
    """The posterior of gates under one of the estimators that `SpikeSlab` names."""
    return GateBernoulli(logits=logits)


class GateBernoulli(dist.Bernoulli):  # type: ignore[misc]
    """Bernoulli with hard samples and ReinMax gradients: exact in expectation for losses quadratic in each gate.

    Its log mass is that of the hard gate, so the ELBO is that of the hard model, not of a relaxed surrogate.
    """

    has_rsample = True

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> GateBernoulli:
        return GateBernoulli(logits=self.logits.expand(torch.Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        logits = self.logits.expand(shape)
        return _ReinMax.apply(  # type: ignore[no-untyped-call]
            logits, torch.rand(shape, dtype=logits.dtype, device=logits.device))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


@register_kl(GateBernoulli, dist.Bernoulli)  # type: ignore[untyped-decorator]
def _kl_gate(q: GateBernoulli, p: dist.Bernoulli) -> Tensor:
    return kl_divergence(
        torch.distributions.Bernoulli(logits=q.logits), torch.distributions.Bernoulli(logits=p.logits)
    )
