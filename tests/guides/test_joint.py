"""Joint, flowing and point families of global sites against posteriors that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from pvae_pyro.guides import Amortized, Flow, LowRank, Map
from pvae_pyro.guides.family import Family
from pvae_pyro.guides.flow import FlowFamily, StandardFlow
from pvae_pyro.guides.joint import AUXILIARY
from pvae_pyro.guides.low_rank import LowRankNormal
from pvae_pyro.guides.sites import read_sites

Program = Callable[[], None]


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(0)
        yield


class Gaussian3:
    """w ~ Normal(0, I_2), log tau ~ Normal(0.3, 0.5), y ~ Normal(w_1 - w_2 + 0.5 log tau, 0.4): normal in u = (w, log tau)."""

    mean, sd = torch.tensor([0.0, 0.0, 0.3]), torch.tensor([1.0, 1.0, 0.5])
    slope, noise, y = torch.tensor([1.0, -1.0, 0.5]), 0.4, 1.3

    def __call__(self) -> None:
        with pyro.plate("latents", 2, dim=-1):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0))
        tau = pyro.sample("tau", dist.LogNormal(self.mean[2], self.sd[2]))
        pyro.sample("y", dist.Normal(w[0] - w[1] + 0.5 * tau.log(), self.noise), obs=torch.tensor(self.y))

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean (3,) and covariance (3, 3) of u given y."""
        precision = torch.diag(self.sd**-2) + torch.outer(self.slope, self.slope) / self.noise**2
        covariance = torch.linalg.inv(precision)
        return covariance @ (self.mean / self.sd**2 + self.slope * self.y / self.noise**2), covariance

    def log_evidence(self) -> float:
        variance = self.slope.square() @ self.sd.square() + self.noise**2
        return float(dist.Normal(self.slope @ self.mean, variance.sqrt()).log_prob(torch.tensor(self.y)))

    def elbo(self, mean: Tensor, covariance: Tensor) -> float:
        """By hand: E log p(y | u) - KL(Normal(mean, covariance), prior)."""
        gap, spread = self.y - self.slope @ mean, self.slope @ covariance @ self.slope
        fit = -0.5 * (gap**2 + spread) / self.noise**2 - math.log(self.noise) - 0.5 * math.log(2 * math.pi)
        q, p = dist.MultivariateNormal(mean, covariance), dist.MultivariateNormal(self.mean, torch.diag(self.sd**2))
        return float(fit - torch.distributions.kl_divergence(q, p))


def family_of(program: Program, guide: Amortized) -> Any:
    return guide.family(read_sites(program))


def set_normal(family: LowRankNormal, mean: Tensor, covariance: Tensor) -> None:
    """Full rank: D is half the smallest eigenvalue, the factors are the rest."""
    values, vectors = torch.linalg.eigh(covariance)
    d = 0.5 * values[0]
    with torch.no_grad():
        for name, piece in zip(family.covered, mean.split(family.sizes), strict=True):
            family.loc[name].copy_(piece.reshape(family.loc[name].shape))
            family.log_scale[name].fill_(0.5 * float(d.log()))
        family.scaled_factor.copy_(vectors * ((values - d) / d).sqrt() / family.weight)


def losses(program: Program, family: Family, n: int) -> Tensor:
    elbo = TraceMeanField_ELBO()
    with torch.no_grad(), pyro.validation_enabled(False):
        return torch.tensor([-elbo.loss(program, family.sample) for _ in range(n)])


def train(program: Program, family: Family, steps: int, rate: float = 0.02) -> Family:
    """Full-batch Adam with a falling rate; networks have a smaller one, as in a fit."""
    elbo = TraceMeanField_ELBO()
    named = [(n, p) for n, p in family.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if not n.startswith("flow.")], "lr": rate},
        {"params": [p for n, p in named if n.startswith("flow.")], "lr": rate / 4},
    ]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with pyro.validation_enabled(False):
        for _ in range(steps):
            optimiser.zero_grad()
            elbo.differentiable_loss(program, family.sample).backward()
            optimiser.step()
            schedule.step()
    return family


def drawn(family: Family, n: int) -> dict[str, Tensor]:
    """`n` draws of every site, by name."""
    with torch.no_grad(), pyro.poutine.block():
        values = [family.sample() for _ in range(n)]
    return {name: torch.stack([one[name] for one in values]) for name in values[0]}


def test_the_density_of_low_rank_is_that_of_the_dense_normal() -> None:
    def program() -> None:
        with pyro.plate("targets", 3, dim=-2), pyro.plate("latents", 2, dim=-1):
            pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0))
        pyro.sample("tau", dist.LogNormal(0.0, 1.0))

    family = family_of(program, LowRank(rank=3))
    assert family.scaled_factor.shape == (7, 3) and family.covered == ("w", "tau")
    with torch.no_grad():
        family.scaled_factor.normal_()
        for entries in (family.loc, family.log_scale):
            for p in entries.values():
                p.normal_()
    loc, log_scale, factor = (p.detach() for p in family.parameters_of_law())
    root = torch.diag(log_scale.exp())
    covariance = root @ (torch.eye(7) + factor @ factor.T) @ root
    dense = torch.distributions.MultivariateNormal(loc, covariance)
    for _ in range(5):
        u = loc + torch.randn(7)
        torch.testing.assert_close(family.log_density(u).detach(), dense.log_prob(u), rtol=1e-4, atol=1e-4)
    n = 3000
    with torch.no_grad():
        u = torch.stack([family.draw() for _ in range(n)])
    variance = covariance.diag()
    assert ((u.mean(0) - loc) / (variance / n).sqrt()).abs().max() < 4.5
    error = ((torch.outer(variance, variance) + covariance.square()) / n).sqrt()
    assert ((u.T.cov() - covariance) / error).abs().max() < 4.5


def test_at_the_posterior_every_draw_of_the_elbo_is_the_log_evidence_and_has_no_gradient() -> None:
    world = Gaussian3()
    family = family_of(world, LowRank(rank=3))
    set_normal(family, *world.posterior())
    assert (losses(world, family, 30) - world.log_evidence()).abs().max() < 2e-4
    for _ in range(10):
        gradient = torch.autograd.grad(TraceMeanField_ELBO().differentiable_loss(world, family.sample), list(family.parameters()))
        assert max(float(g.abs().max()) for g in gradient) < 2e-3
    # a wrong density would show: half as wide is four nats or so away
    with torch.no_grad():
        family.log_scale["w"] -= math.log(2)
    assert losses(world, family, 200).mean() < world.log_evidence() - 0.1


def test_elsewhere_the_mean_of_the_elbo_is_that_by_hand() -> None:
    world = Gaussian3()
    family = family_of(world, LowRank(rank=3))
    generator = torch.Generator().manual_seed(3)
    root = 0.4 * torch.randn(3, 3, generator=generator)
    mean, covariance = torch.tensor([0.5, 0.1, -0.2]), root @ root.T + 0.05 * torch.eye(3)
    set_normal(family, mean, covariance)
    found = losses(world, family, 800)
    assert abs(float(found.mean()) - world.elbo(mean, covariance)) < 4 * float(found.std()) / 800**0.5
    # and so is that of a flow at its start, which covers all three sites: independent normals
    family = family_of(world, Flow(initial_scale=0.3))
    assert family.covered == ("w", "tau")
    found = losses(world, family, 800)
    expected = world.elbo(world.mean, 0.09 * torch.eye(3))
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / 800**0.5


def test_low_rank_finds_a_correlation_that_mean_field_misses() -> None:
    """Only w_1 - w_2 is measured: the sum keeps its prior variance, up to what the third number shares with it."""
    world = Gaussian3()
    mean, covariance = world.posterior()
    one = torch.tensor([1.0, 1.0, 0.0])
    true = float(one @ covariance @ one)
    found, gap = {}, {}
    for name, guide in (("rank 2", LowRank(rank=2)), ("mean field", Amortized())):
        family = train(world, family_of(world, guide), 600, 0.1)
        loc, scale = (torch.cat([p[n].detach().reshape(-1) for n in ("w", "tau")]) for p in (family.loc, family.log_scale))
        factor = family.parameters_of_law()[2].detach() if name == "rank 2" else torch.zeros(3, 1)
        root = torch.diag(scale.exp())
        learnt = root @ (torch.eye(3) + factor @ factor.T) @ root
        found[name], gap[name] = float(one @ learnt @ one), world.log_evidence() - world.elbo(loc, learnt)
        torch.testing.assert_close(loc, mean, atol=0.1, rtol=0.0)
    assert abs(found["rank 2"] / true - 1) < 0.1 and found["mean field"] < 0.2 * true
    assert gap["rank 2"] < 0.01 and gap["mean field"] > 0.5


def test_what_no_data_reach_stays_at_its_prior() -> None:
    """A gradient with noise would let it wander: by 5 to 7 % of the prior's sd under the same steps."""

    def program() -> None:
        with pyro.plate("latents", 40, dim=-1):
            pyro.sample("kappa", dist.LogNormal(torch.full((40,), -1.3), 0.25))

    family = family_of(program, LowRank(rank=5))
    family.follow_prior("kappa")
    train(program, family, 400, 0.01)
    assert (family.loc["kappa"] + 1.3).abs().max() < 0.02 * 0.25
    variance = (2 * family.log_scale["kappa"]).exp() * (1 + family.parameters_of_law()[2].square().sum(-1))
    assert (variance.sqrt() / 0.25 - 1).abs().max() < 0.02


def test_ten_thousand_correlated_globals_are_cheap_in_memory() -> None:
    """No square matrix of the globals is made: 10,000 of them would need 400 MB."""
    n = 10_000

    def program() -> None:
        with pyro.plate("genes", n, dim=-1):
            pyro.sample("w", dist.Normal(torch.zeros(n), 1.0))

    family = family_of(program, LowRank(rank=4))
    sizes: list[int] = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor))
            return out

    with Seen():
        TraceMeanField_ELBO().differentiable_loss(program, family.sample).backward()
    assert n * 4 <= max(sizes) <= n * 10
    assert all(torch.isfinite(p.grad).all() for p in family.parameters())


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_flow_starts_at_the_identity(n: int, layers: int) -> None:
    flow = StandardFlow(n, layers, 8)
    eps = torch.linspace(-6, 6, 40).unsqueeze(-1).expand(-1, n)
    for one in eps:
        torch.testing.assert_close(flow.push(one), one, rtol=0.0, atol=2e-6)
        torch.testing.assert_close(flow(one), dist.Normal(0.0, 1.0).log_prob(one).sum(), rtol=1e-5, atol=1e-5)


def test_at_its_start_a_flow_draws_what_mean_field_draws() -> None:
    world = Gaussian3()
    family = family_of(world, Flow(initial_scale=0.7))
    with torch.no_grad():
        family.loc["w"].copy_(torch.tensor([1.0, -2.0]))
    pyro.set_rng_seed(5)
    with pyro.poutine.block():
        values = family.sample()
    pyro.set_rng_seed(5)
    eps = torch.randn(3)
    torch.testing.assert_close(values["w"], torch.tensor([1.0, -2.0]) + 0.7 * eps[:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["tau"].log(), 0.3 + 0.7 * eps[2], atol=1e-5, rtol=1e-5)
    centre = family.centre()
    torch.testing.assert_close(centre["w"], family.loc["w"], atol=1e-6, rtol=1e-6)
    assert float(centre["tau"].detach()) == pytest.approx(math.exp(0.3))


def bent(n: int, layers: int = 2) -> StandardFlow:
    """A flow with random parameters, in double precision."""
    flow = StandardFlow(n, layers, 8).double()
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.7 * torch.randn_like(p)
    return flow


@pytest.mark.parametrize(("n", "layers"), [(1, 2), (2, 2), (3, 1), (5, 3)])
def test_log_density_of_a_flow_is_a_change_of_variables(n: int, layers: int) -> None:
    flow = bent(n, layers)
    moved = 0.0
    for _ in range(20):
        eps = 1.5 * torch.randn(n, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(flow.push, eps)
        w = flow.push(eps)
        expected = dist.Normal(0.0, 1.0).log_prob(eps).sum() - jacobian.reshape(n, n).slogdet()[1]
        torch.testing.assert_close(flow(w).detach(), expected.detach(), rtol=1e-6, atol=1e-6)
        moved = max(moved, float((w - eps).detach().abs().max()))
    assert moved > 0.3


def test_the_density_of_a_flow_integrates_to_one() -> None:
    with torch.no_grad():
        line = torch.linspace(-9, 9, 2001, dtype=torch.float64)
        one = bent(1)
        assert float(torch.trapezoid(torch.stack([one(w.reshape(1)).exp() for w in line]), line)) == pytest.approx(1, abs=1e-3)


class Banana:
    """a ~ Normal(0, 1), log t ~ Normal(0, 1), log t + 0.7 a^2 measured: a posterior along a parabola."""

    y, noise = 0.0, 0.3

    def __call__(self) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        t = pyro.sample("t", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(t.log() + 0.7 * a.square(), self.noise), obs=torch.tensor(self.y))

    def log_evidence(self) -> float:
        grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
        a, b = torch.meshgrid(grid, grid, indexing="ij")
        joint = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(0.0, 1.0).log_prob(b)
        joint = joint + dist.Normal(b + 0.7 * a.square(), self.noise).log_prob(torch.tensor(self.y, dtype=torch.float64))
        return float(torch.logsumexp(joint.flatten(), 0) + 2 * math.log(0.01))


def test_a_flow_follows_a_bent_posterior_that_independent_normals_cannot() -> None:
    world = Banana()
    evidence = world.log_evidence()
    gaps = {}
    for name, guide in (("flow", Flow(initial_scale=0.5)), ("mean field", Amortized(initial_scale=0.5))):
        found = losses(world, train(world, family_of(world, guide), 600), 400)
        gaps[name] = evidence - float(found.mean())
        assert gaps[name] > -4 * float(found.std()) / 400**0.5  # an ELBO does not exceed the evidence
    assert gaps["flow"] < 0.5 * gaps["mean field"]


def test_a_spline_follows_one_skewed_number() -> None:
    """A single site has no partner to couple with: KL to a skewed posterior on a grid, beside the best normal's."""

    def program() -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 3.0))
        pyro.sample("y", dist.Gamma(torch.tensor(1.5), rate), obs=torch.tensor(1.0))

    x = torch.linspace(-20, 10, 3001, dtype=torch.float64)
    log_p = dist.Normal(0.0, 3.0).log_prob(x) + dist.Gamma(1.5, x.exp()).log_prob(torch.tensor(1.0, dtype=torch.float64))
    log_p, step = log_p - torch.logsumexp(log_p, 0) - (x[1] - x[0]).log(), float(x[1] - x[0])

    def gap(log_q: Tensor) -> float:
        assert float(log_q.exp().sum() * step) == pytest.approx(1, abs=1e-3)
        return float((log_q.exp() * (log_q - log_p)).sum() * step)

    family = train(program, family_of(program, Flow(initial_scale=1.0)), 400, 0.08).double()
    with torch.no_grad():
        flow = gap(torch.stack([family.log_density(u.reshape(1)) for u in x]))
    best = min(gap(dist.Normal(m, s).log_prob(x)) for m in (0.0, 0.05, 0.1, 0.15) for s in (0.7, 0.75, 0.8, 0.85))
    assert flow < 0.4 * best


def test_a_flow_covers_small_sites_that_targets_share() -> None:
    def program() -> None:
        targets, latents = pyro.plate("targets", 3, dim=-2), pyro.plate("latents", 4, dim=-1)
        with latents:
            kappa = pyro.sample("kappa", dist.LogNormal(torch.zeros(4), 1.0))
            pyro.sample("rate", dist.Beta(torch.ones(4), torch.ones(4)))
        with targets, latents:
            pyro.sample("gates", dist.Bernoulli(torch.full((4,), 0.5)))
            pyro.sample("effects", dist.Normal(torch.zeros(4), kappa))
        pyro.sample("capacity", dist.LogNormal(0.0, 1.0))
        with pyro.plate("genes", 9, dim=-1):
            pyro.sample("noise", dist.LogNormal(torch.zeros(9), 1.0))

    assert family_of(program, Flow(largest=8)).covered == ("kappa", "rate", "capacity")
    assert family_of(program, Flow(largest=3)).covered == ("capacity",)
    nothing = family_of(lambda: pyro.sample("w", dist.Normal(torch.zeros(9), 1.0).to_event(1)), Flow(largest=3))
    assert isinstance(nothing, FlowFamily) and nothing.covered == () and nothing.flow is None
    assert AUXILIARY not in pyro.poutine.trace(nothing.sample).get_trace()
    values = pyro.poutine.trace(family_of(program, Flow(largest=8)).sample).get_trace()
    assert values.nodes[AUXILIARY]["infer"]["is_auxiliary"] and values.nodes[AUXILIARY]["value"].shape == (9,)
    loss = TraceMeanField_ELBO().differentiable_loss(program, family_of(program, Flow(largest=8)).sample)
    assert torch.isfinite(loss)


def test_gradients_of_a_flow_stay_finite_far_outside_of_its_splines() -> None:
    flow = StandardFlow(4, 2, 8)
    for at in (-30.0, -4.0, 0.0, 4.0, 30.0):
        flow.zero_grad()
        eps = torch.full((4,), at, requires_grad=True)
        (flow.push(eps).sum() + flow(flow.push(eps).detach())).backward()
        assert torch.isfinite(eps.grad).all()  # type: ignore[arg-type]
        assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


def test_map_finds_the_mode_on_the_constrained_scale_and_draws_nothing_else() -> None:
    world = Gaussian3()
    family = train(world, family_of(world, Map()), 500, 0.05)
    # in (w, log tau) the density of (w, tau) is the posterior's times 1 / tau: the mode moves by -covariance e_3
    mean, covariance = world.posterior()
    mode = mean - covariance[:, 2]
    values = drawn(family, 5)
    assert all(torch.equal(value, value[:1].expand_as(value)) for value in values.values())
    torch.testing.assert_close(torch.cat([values["w"][0], values["tau"][:1].log()]), mode, atol=2e-3, rtol=0.0)
    assert (mode - mean).abs().max() > 0.02
    assert not any(p.requires_grad for p in family.log_scale.values())


def test_gates_of_map_stay_bernoulli() -> None:
    def program() -> None:
        with pyro.plate("targets", 50, dim=-2), pyro.plate("latents", 20, dim=-1):
            pyro.sample("gates", dist.Bernoulli(torch.full((50, 20), 0.3)))
            pyro.sample("effects", dist.Normal(torch.zeros(50, 20), 1.0))

    values = drawn(family_of(program, Map()), 4)
    assert set(values["gates"].unique().tolist()) == {0.0, 1.0} and not torch.equal(values["gates"][0], values["gates"][1])
    assert float(values["gates"].mean()) == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)
    assert torch.equal(values["effects"][0], values["effects"][3])
