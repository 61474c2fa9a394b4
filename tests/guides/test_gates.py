"""The gate estimator against enumeration: two perturbations x two latents have sixteen gate configurations."""

from __future__ import annotations

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import kl_divergence

from pvae_pyro.guides import GateBernoulli
from pvae_pyro.guides.gates import _ReinMax

LOGITS = torch.tensor([[-1.2, 0.3], [2.0, -0.1]], dtype=torch.float64)  # (perturbations, latents)
CONFIGURATIONS = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64).reshape(16, 2, 2)


class Quadratic:
    """f(s) = s' A s + b's + c over the four gates, cross terms between all of them included."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.a = torch.randn(4, 4, dtype=torch.float64, generator=g)
        self.b = torch.randn(4, dtype=torch.float64, generator=g)

    def __call__(self, gates: Tensor) -> Tensor:
        s = gates.reshape(-1, 4)
        return ((s @ self.a) * s).sum(-1) + s @ self.b + 1.7


def exact_gradient(loss: Quadratic, logits: Tensor) -> Tensor:
    """d E f(s) / d logits from all sixteen configurations."""
    free = logits.clone().requires_grad_()
    law = torch.distributions.Bernoulli(logits=free)
    expected = (law.log_prob(CONFIGURATIONS).sum((1, 2)).exp() * loss(CONFIGURATIONS)).sum()
    (gradient,) = torch.autograd.grad(expected, free)
    return gradient


def estimates(loss: Quadratic, logits: Tensor, n: int, seed: int) -> Tensor:
    """`n` one-sample gradients (n, 2, 2)."""
    free = logits.expand(n, 2, 2).clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gates = GateBernoulli(logits=free).rsample()
    (gradient,) = torch.autograd.grad(loss(gates).sum(), free)
    return gradient


def test_samples_are_hard_and_have_the_right_frequency() -> None:
    n = 40_000
    torch.manual_seed(0)
    law = GateBernoulli(logits=LOGITS)
    for draws in (law.rsample((n,)), law.sample((n,))):
        assert draws.shape == (n, 2, 2) and set(draws.unique().tolist()) == {0.0, 1.0}
        p = torch.sigmoid(LOGITS)
        assert ((draws.mean(0) - p) / (p * (1 - p) / n).sqrt()).abs().max() < 4
        # gates are independent of each other
        flat = draws.reshape(n, 4)
        assert (torch.corrcoef(flat.T) - torch.eye(4, dtype=torch.float64)).abs().max() < 4.5 / n**0.5
    assert law.has_rsample and not law.sample().requires_grad


def test_gradient_is_unbiased_for_a_quadratic_loss() -> None:
    loss, n = Quadratic(1), 100_000
    found = estimates(loss, LOGITS, n, 2)
    exact = exact_gradient(loss, LOGITS)
    z = (found.mean(0) - exact) / (found.std(0) / n**0.5)
    assert z.abs().max() < 4
    # the test could see a bias of two per cent of the gradients it estimates
    assert (4 * found.std(0) / n**0.5).max() < 0.02 * exact.abs().max()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(10, 10_000), st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_gradient_is_unbiased_for_random_quadratics(seed: int, logits: list[float]) -> None:
    loss, at, n = Quadratic(seed), torch.tensor(logits, dtype=torch.float64).reshape(2, 2), 20_000
    found = estimates(loss, at, n, seed)
    error = found.std(0) / n**0.5
    assert ((found.mean(0) - exact_gradient(loss, at)).abs() < 5 * error + 1e-12).all()


def test_gradient_by_its_own_enumeration_is_exact() -> None:
    """Weighting the estimator's value at each configuration by its probability leaves no Monte Carlo error at all."""
    loss = Quadratic(3)
    p = torch.sigmoid(LOGITS)
    total = torch.zeros(2, 2, dtype=torch.float64)
    for gates in CONFIGURATIONS:
        # the uniform that gives exactly this configuration: just below or above p
        free = LOGITS.clone().requires_grad_()
        uniform = torch.where(gates == 1, p * 0.5, (1 + p) * 0.5)
        drawn = _ReinMax.apply(free, uniform)
        assert torch.equal(drawn, gates)
        (gradient,) = torch.autograd.grad(loss(drawn).sum(), free)
        total += torch.where(gates == 1, p, 1 - p).prod() * gradient
    torch.testing.assert_close(total, exact_gradient(loss, LOGITS), rtol=1e-12, atol=1e-12)


def test_a_cubic_loss_shows_what_second_order_means() -> None:
    """f(s) = s^3 equals s on gates, yet its slope does not: the promise is for quadratics, and no more."""
    logit = torch.zeros(1, dtype=torch.float64)
    free = logit.expand(50_000).clone().requires_grad_()
    torch.manual_seed(4)
    (gradient,) = torch.autograd.grad(GateBernoulli(logits=free).rsample().pow(3).sum(), free)
    assert float(gradient.mean()) == pytest.approx(0.25 * 3 / 2, abs=4 * float(gradient.std()) / 50_000**0.5)


def test_kl_is_that_of_two_bernoullis() -> None:
    q, p = GateBernoulli(logits=LOGITS), torch.tensor([0.1, 0.6], dtype=torch.float64)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for i, j in product(range(2), range(2)):
        a, b = torch.sigmoid(LOGITS[i, j]), p[j]
        expected[i, j] = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
    torch.testing.assert_close(kl_divergence(q, dist.Bernoulli(p.expand(2, 2))), expected)


def test_the_log_mass_is_that_of_the_hard_gate() -> None:
    law = GateBernoulli(logits=LOGITS)
    total = law.log_prob(CONFIGURATIONS).sum((1, 2)).exp().sum()
    assert float(total) == pytest.approx(1)
    torch.testing.assert_close(law.log_prob(torch.ones(2, 2, dtype=torch.float64)), torch.sigmoid(LOGITS).log())


def test_expand_keeps_the_estimator_and_shares_the_parameter() -> None:
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    wide = GateBernoulli(logits=free).expand(torch.Size([1000, 2]))
    assert isinstance(wide, GateBernoulli) and wide.batch_shape == (1000, 2)
    torch.manual_seed(5)
    (gradient,) = torch.autograd.grad(wide.rsample().sum(), free)
    # at p = 1/2 each draw gives p (1 - p), whatever the gate
    torch.testing.assert_close(gradient, torch.full((2,), 250.0, dtype=torch.float64))


def test_a_site_in_plates_keeps_its_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    pyro.set_rng_seed(6)
    with pyro.plate("targets", 2, dim=-2), pyro.plate("latents", 2, dim=-1):
        gates = pyro.sample("gates", GateBernoulli(logits=logits))
    (gates * torch.arange(4.0).reshape(2, 2)).sum().backward()
    assert logits.grad is not None and logits.grad[0, 0] == 0 and (logits.grad.reshape(-1)[1:] > 0).all()
