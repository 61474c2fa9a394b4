"""The gate estimators against enumeration: two perturbations x two latents have sixteen gate configurations."""

from __future__ import annotations

from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import kl_divergence

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Amortized, GateBernoulli
from pvae_pyro.guides.gates import _ReinMax, _straight_through, configurations, gate_law
from pvae_pyro.story import PerturbedVAE, SpikeSlab, Story

LOGITS = torch.tensor([[-1.2, 0.3], [2.0, -0.1]], dtype=torch.float64)  # (perturbations, latents)
CONFIGURATIONS = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64).reshape(16, 2, 2)


class Quadratic:
    """f(s) = s' A s + b's + c over the four gates, cross terms between all of them included; linear in each without `curved`."""

    def __init__(self, seed: int, curved: bool = True) -> None:
        g = torch.Generator().manual_seed(seed)
        self.a = torch.randn(4, 4, dtype=torch.float64, generator=g)
        if not curved:
            self.a.fill_diagonal_(0)
        self.b = torch.randn(4, dtype=torch.float64, generator=g)

    def __call__(self, gates: Tensor) -> Tensor:
        s = gates.reshape(-1, 4)
        return ((s @ self.a) * s).sum(-1) + s @ self.b + 1.7


def square(gates: Tensor) -> Tensor:
    return gates.square()


def line(gates: Tensor) -> Tensor:
    return 3 * gates


def cubic(gates: Tensor) -> Tensor:
    return (gates.reshape(-1, 4).sum(-1) - 1.3) ** 3


def exact_gradient(loss: Any, logits: Tensor) -> Tensor:
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


def moments(draw: Any, loss: Any, logits: Tensor = LOGITS) -> tuple[Tensor, Tensor]:
    """Mean and variance of a one-sample gradient, its value at each configuration weighted by its probability: no Monte Carlo."""
    p = torch.sigmoid(logits)
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for gates in CONFIGURATIONS:
        # the uniform that gives exactly this configuration: just below or above p
        free = logits.clone().requires_grad_()
        drawn = draw(free, torch.where(gates == 1, p * 0.5, (1 + p) * 0.5))
        assert torch.equal(drawn, gates)
        (gradient,) = torch.autograd.grad(loss(drawn).sum(), free)
        probability = torch.where(gates == 1, p, 1 - p).prod()
        mean, square = mean + probability * gradient, square + probability * gradient.square()
    return mean, square - mean.square()


def reinforce(loss: Any, logits: Tensor = LOGITS) -> Tensor:
    """Variance of f(s) d log q(s) / d logits, over the same configurations."""
    p = torch.sigmoid(logits)
    probability = torch.where(CONFIGURATIONS == 1, p, 1 - p).prod(-1).prod(-1).reshape(16, 1, 1)
    gradient = loss(CONFIGURATIONS).reshape(16, 1, 1) * (CONFIGURATIONS - p)
    mean = (probability * gradient).sum(0)
    torch.testing.assert_close(mean, exact_gradient(loss, logits))
    return (probability * gradient.square()).sum(0) - mean.square()


def test_gradient_by_its_own_enumeration_is_exact() -> None:
    mean, _ = moments(_ReinMax.apply, Quadratic(3))
    torch.testing.assert_close(mean, exact_gradient(Quadratic(3), LOGITS), rtol=1e-12, atol=1e-12)


def test_straight_through_is_exact_for_losses_linear_in_each_gate() -> None:
    loss = Quadratic(3, curved=False)
    mean, _ = moments(_straight_through, loss)
    torch.testing.assert_close(mean, exact_gradient(loss, LOGITS), rtol=1e-12, atol=1e-12)
    assert loss.a.abs().sum() > 1  # products of different gates are in it


def test_the_bias_of_straight_through_on_a_curved_loss() -> None:
    """a s^2 is a s on gates, but its slope at the gate drawn is not: the bias is a (2p - 1) p (1 - p)."""
    loss, p = Quadratic(3), torch.sigmoid(LOGITS)
    mean, _ = moments(_straight_through, loss)
    expected = loss.a.diagonal().reshape(2, 2) * (2 * p - 1) * p * (1 - p)
    torch.testing.assert_close(mean - exact_gradient(loss, LOGITS), expected, rtol=1e-10, atol=1e-12)
    # as a number: the gradient of s^2 at p = 0.88 (logit 2) comes out as 0.185, 76 % above the true 0.105
    at = torch.full((2, 2), 2.0, dtype=torch.float64)
    found, _ = moments(_straight_through, square, at)
    assert float(found[0, 0]) == pytest.approx(0.185, abs=5e-4)
    assert float(found[0, 0]) / float(moments(_ReinMax.apply, square, at)[0][0, 0]) == pytest.approx(1.76, abs=5e-3)


@pytest.mark.parametrize("seed", range(6))
def test_reinmax_varies_less_than_reinforce(seed: int) -> None:
    loss = Quadratic(seed)
    _, variance = moments(_ReinMax.apply, loss)
    assert variance.sum() < 0.6 * reinforce(loss).sum()


@pytest.mark.parametrize("logit", [-2.0, -0.4, 0.4, 2.0])
def test_where_reinmax_varies_less_than_straight_through_and_where_not(logit: float) -> None:
    """On s^2 its variance is 1 / (4 p^2) of straight-through's: less where gates are rather open than shut. On a loss linear in
    each gate straight-through does not vary at all, and ReinMax by (1 - 2p)^2 p (1 - p) / 4 of the squared slope."""
    at, p = torch.full((2, 2), logit, dtype=torch.float64), torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
    one, other = (moments(draw, square, at)[1][0, 0] for draw in (_ReinMax.apply, _straight_through))
    assert float(one / other) == pytest.approx(float(1 / (4 * p**2)))
    assert bool(one < other) == (logit > 0)
    one, other = (moments(draw, line, at)[1][0, 0] for draw in (_ReinMax.apply, _straight_through))
    assert float(other) == pytest.approx(0, abs=1e-12)
    assert float(one) == pytest.approx(float(9 * (1 - 2 * p) ** 2 * p * (1 - p) / 4))


def test_the_sum_over_configurations_is_exact_for_any_loss() -> None:
    free = LOGITS.clone().requires_grad_()
    terms = list(configurations({"a": free[:1], "b": free[1:]}))
    assert len(terms) == 16 and float(sum(p for _, p in terms).detach()) == pytest.approx(1)
    total = sum(p * cubic(torch.cat([gates["a"], gates["b"]])).sum() for gates, p in terms)
    (gradient,) = torch.autograd.grad(total, free)
    torch.testing.assert_close(gradient, exact_gradient(cubic, LOGITS), rtol=1e-12, atol=1e-12)
    assert (moments(_ReinMax.apply, cubic)[0] - gradient).abs().max() > 0.01  # which no estimator of second order is


def test_the_law_of_each_estimator() -> None:
    uniform = torch.rand(2, 2, dtype=torch.float64)
    laws = {name: gate_law(name, LOGITS) for name in ("reinmax", "straight-through", "enumerate")}
    for law in laws.values():
        assert isinstance(law, GateBernoulli) and set(law.sample((50,)).unique().tolist()) == {0.0, 1.0}
        assert torch.equal(law.draw(LOGITS, uniform), (uniform < torch.sigmoid(LOGITS)).double())
    slopes = {}
    for name, law in laws.items():
        free = LOGITS.clone().requires_grad_()
        slopes[name] = torch.autograd.grad(law.draw(free, uniform).sum(), free)[0]
    p = torch.sigmoid(LOGITS)
    torch.testing.assert_close(slopes["straight-through"], p * (1 - p))
    assert not torch.allclose(slopes["reinmax"], slopes["straight-through"])
    pinned = gate_law("enumerate", LOGITS, torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert torch.equal(pinned.expand((3, 2, 2)).rsample(), torch.eye(2, dtype=torch.float64).expand(3, 2, 2))
    prior = dist.Bernoulli(torch.full((2, 2), 0.3, dtype=torch.float64))
    torch.testing.assert_close(kl_divergence(pinned, prior), kl_divergence(laws["reinmax"], prior))


@pytest.mark.parametrize(("targets", "latents"), [(5, 2), (11, 1)])
def test_more_than_ten_gates_are_not_enumerated(targets: int, latents: int) -> None:
    design = torch.cat([torch.zeros(1, targets), torch.eye(targets)])
    story = Story(PerturbedVAE(SpikeSlab(estimator="enumerate"), responsive=latents, background=1), design, 10, 1, 4, latents)
    if targets * latents <= 10:
        assert len(Amortized().build(story).family.configurations()) == 1024
        return
    with pytest.raises(InputError, match="at most 10 gates, but targets times latents make 11") as problem:
        Amortized().build(story)
    assert ". " not in str(problem.value) and "reinmax" in str(problem.value)


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
