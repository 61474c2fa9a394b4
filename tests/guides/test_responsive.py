"""q(z_r | x, u) with escaping cells: exact where all is linear and normal, a tight bound there, no leak without effects."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pvae_pyro.guides import Amortized, AmortizedGuide
from pvae_pyro.guides.responsive import Responding, encode
from pvae_pyro.story import (
    Additive,
    CausalGraph,
    Cells,
    Full,
    Gaussian,
    Mixture,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
    Story,
)
from pvae_pyro.story.latents import StructuralMixture, StructuralNormal
from pvae_pyro.story.model import Globals

DESIGN = [[0, 0], [1, 0], [0, 1], [1, 1]]
LINEAR = {"effects": NormalEffects(), "composition": Additive(), "likelihood": Gaussian(link="identity"), "hidden": 0}


def world(latents: int, genes: int, penetrance: Mixture | Full, graph: object) -> tuple[AmortizedGuide, Globals, Tensor]:
    """The guide of a linear-Gaussian story, its encoder with the exact gains, one value of the globals, noise sd."""
    pyro.set_rng_seed(1)
    model = PerturbedVAE(responsive=latents, background=2, penetrance=penetrance, graph=graph, **LINEAR)  # type: ignore[arg-type]
    story = Story(model, torch.tensor(DESIGN, dtype=torch.float64), 40, 1, genes, latents).double()
    guide = Amortized().build(story).double()
    generator = torch.Generator().manual_seed(2)
    noise = 0.4 + torch.rand(genes, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        story.decoder.responsive.copy_(0.5 * torch.randn(latents, genes, dtype=torch.float64, generator=generator))
        for name, value in guide.central_values().items():
            if name == "effects":
                guide.family.place(name, 2.5 * torch.randn(2, latents, dtype=torch.float64, generator=generator))
            elif name == "edge_gates":
                guide.family.place(name, torch.ones_like(value))
            elif name == "edge_weights":
                guide.family.place(name, 0.5 * torch.randn(value.shape, dtype=torch.float64, generator=generator))
        g = guide.assemble(guide.central_values())
        w = story.decoder.responsive
        passed = torch.linalg.inv(torch.eye(latents, dtype=torch.float64) - g.graph)
        prior = passed @ passed.T  # covariance of z_r in a cell whose noise has variance 1
        guide.gain_responsive.copy_(torch.linalg.solve(w.T @ prior @ w + torch.diag(noise**2), w.T @ prior))
    guide.centre.copy_(story.decoder.intercept.detach())
    return guide, g, noise


def cells_at(guide: AmortizedGuide, n: int) -> tuple[Cells, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = 1.5 * torch.randn(n, len(guide.story.spread), dtype=torch.float64, generator=generator)
    z_b = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return Cells(x, x, torch.arange(n) % 4, torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.float64)), z_b


def of_x(guide: AmortizedGuide, g: Globals, noise: Tensor, z_b: Tensor, condition: Tensor) -> tuple[MultivariateNormal, ...]:
    """p(x | z_b) of cells that respond and of control cells, z_r integrated out by explicit matrices."""
    story = guide.story
    inverse = torch.linalg.inv(torch.eye(story.n_latents, dtype=torch.float64) - g.graph)
    w = story.decoder.responsive.detach()
    covariance = w.T @ inverse @ inverse.T @ w + torch.diag(noise**2)
    base = story.decoder.intercept[0].detach() + g.residual[condition] + (z_b @ story.decoder.background).detach()
    sources = (z_b @ g.coupling + g.shift[condition], z_b @ g.coupling)
    return tuple(MultivariateNormal(base + (s.detach() @ inverse.T) @ w, covariance) for s in sources)


@pytest.mark.parametrize("graph", [NoGraph(), CausalGraph()], ids=["no graph", "graph"])
def test_odds_of_having_responded_are_bayes_rule(graph: object) -> None:
    guide, g, noise = world(4, 9, Mixture(), graph)
    cells, z_b = cells_at(guide, 40)
    with torch.no_grad():
        one, other = of_x(guide, g, noise, z_b, cells.condition)
        cells.expression[20:] += one.mean[20:]  # half of the cells near where they respond
        q = encode(guide.story.responsive_law(g, z_b, cells.condition), guide, cells, z_b, g)
        rate = g.rate[cells.condition]
        odds = rate.log() + one.log_prob(cells.expression) - (1 - rate).log() - other.log_prob(cells.expression)
    perturbed = cells.condition > 0
    torch.testing.assert_close(q.logits[perturbed], odds[perturbed], rtol=1e-8, atol=1e-8)
    assert (q.probability[perturbed] < 0.3).any() and (q.probability[perturbed] > 0.99).any()
    assert (q.probability[~perturbed] > 1 - 1e-5).all() and bool(g.graph.any()) == isinstance(graph, CausalGraph)


def one_latent() -> tuple[AmortizedGuide, Globals, Tensor, Cells, Tensor, object]:
    """With one latent the whole posterior is in the guide's family."""
    guide, g, noise = world(1, 5, Mixture(), NoGraph())
    with torch.no_grad():
        precision = 1 + (guide.story.decoder.responsive.square() / noise**2).sum()
        guide.log_scale_responsive.fill_(float(-0.5 * precision.log()))
    cells, z_b = cells_at(guide, 40)
    law = guide.story.responsive_law(g, z_b, cells.condition)
    return guide, g, noise, cells, z_b, law


def test_with_one_latent_it_is_the_exact_posterior() -> None:
    guide, g, noise, cells, z_b, law = one_latent()
    with torch.no_grad():
        q = encode(law, guide, cells, z_b, g)
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        z = grid.reshape(-1, 1, 1).expand(-1, 40, 1)
        eta = guide.story.decoder(z_b, z, cells.batch) + g.residual[cells.condition]
        joint = law.log_prob(z) + dist.Normal(eta, noise).log_prob(cells.expression).sum(-1)  # type: ignore[attr-defined]
        exact = joint - torch.logsumexp(joint, 0) - torch.log(grid[1] - grid[0])
        found = q.log_prob(z)
    likely = exact > -12
    torch.testing.assert_close(found[likely], exact[likely], atol=1e-6, rtol=0)


def test_at_the_exact_posterior_the_bound_is_the_marginal_likelihood() -> None:
    guide, g, noise, cells, z_b, law = one_latent()
    torch.manual_seed(4)
    with torch.no_grad():
        q = encode(law, guide, cells, z_b, g)
        one, other = of_x(guide, g, noise, z_b, cells.condition)
        rate = g.rate[cells.condition].clamp(1e-6, 1 - 1e-6)
        x = cells.expression
        expected = torch.logaddexp(rate.log() + one.log_prob(x), (1 - rate).log() + other.log_prob(x))
        z = q.rsample(torch.Size([20_000]))
        eta = guide.story.decoder(z_b, z, cells.batch) + g.residual[cells.condition]
        fit = dist.Normal(eta, noise).log_prob(cells.expression).sum(-1)
        bound = fit.mean(0) - kl_divergence(q, law)  # type: ignore[arg-type]
    assert ((bound - expected) / (fit.std(0) / 20_000**0.5)).abs().max() < 4.5
    assert float((fit.std(0) / 20_000**0.5).max()) < 0.05


def pair(seed: int) -> tuple[Responding, StructuralMixture]:
    rng = np.random.default_rng(seed)

    def normal() -> dist.Independent:
        return dist.Normal(torch.tensor(rng.normal(size=(6, 3))), torch.tensor(rng.uniform(0.4, 1.2, size=(6, 3)))).to_event(1)

    def law() -> StructuralNormal:
        graph = torch.tensor(np.tril(rng.normal(0, 0.5, size=(3, 3)), -1))
        return StructuralNormal(torch.tensor(rng.normal(size=(6, 3))), graph, torch.tensor(rng.uniform(0.5, 1.5, size=(6, 3))))

    q = Responding(torch.tensor(rng.normal(size=6)), normal(), normal())
    return q, StructuralMixture(torch.tensor(rng.uniform(0.2, 0.9, size=6)), law(), law())


def test_its_kl_is_that_of_component_and_value_and_bounds_that_of_the_value() -> None:
    q, p = pair(0)
    torch.manual_seed(1)
    z = q.rsample(torch.Size([60_000]))
    found, ratio = kl_divergence(q, p), q.log_prob(z) - p.log_prob(z)
    assert (found > ratio.mean(0) - 4 * ratio.std(0) / 60_000**0.5).all() and (found > ratio.mean(0) + 0.01).any()
    which = torch.bernoulli(q.probability.expand(60_000, 6)).bool().unsqueeze(-1)
    z = torch.where(which, q.one.sample((60_000,)), q.other.sample((60_000,)))
    w, r = which.squeeze(-1), q.probability
    both = torch.where(w, r.log() + q.one.log_prob(z) - p.rate.log() - p.responding.log_prob(z),
                       (1 - r).log() + q.other.log_prob(z) - (1 - p.rate).log() - p.escaped.log_prob(z))  # fmt: skip
    assert ((both.mean(0) - found) / (both.std(0) / 60_000**0.5)).abs().max() < 4.5


def test_samples_have_the_moments_and_the_gradients_of_the_two_normals() -> None:
    q, _ = pair(2)
    torch.manual_seed(3)
    z, n = q.rsample(torch.Size([60_000])), 60_000
    assert ((z.mean(0) - q.mean) / (q.variance / n) ** 0.5).abs().max() < 4.5
    assert (z.var(0) / q.variance - 1).abs().max() < 0.05
    loc = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    shifted = Responding(q.logits, dist.Normal(q.one.mean + loc, 1.0).to_event(1), q.other)
    shifted.rsample(torch.Size([20_000])).mean(0).sum().backward()
    # a mean moves by the probability that its component is the one
    assert loc.grad is not None and (loc.grad - q.probability.unsqueeze(1)).abs().max() < 4.5 * (0.25 / 20_000) ** 0.5


def test_without_effects_the_encoder_is_that_of_full_penetrance() -> None:
    """Design 3.3: where w is zero, no condition's mean may come from the encoder; odds then say nothing but the rate."""
    on, g, _ = world(3, 7, Mixture(), NoGraph())
    cells, z_b = cells_at(on, 12)
    none = {name: value * 0 if name in ("effects", "interaction") else value for name, value in on.central_values().items()}
    g = on.assemble(none)
    with torch.no_grad():
        q = encode(on.story.responsive_law(g, z_b, cells.condition), on, cells, z_b, g)
        plain = encode(on.story.full_law(g, z_b, cells.condition), on, cells, z_b, g)
    torch.testing.assert_close(q.one.mean, plain.mean)
    torch.testing.assert_close(q.mean, plain.mean)
    torch.testing.assert_close(q.probability, g.rate[cells.condition].clamp(1e-6, 1 - 1e-6))


def test_guide_and_story_agree_and_rates_get_gradients_but_odds_give_none() -> None:
    model = PerturbedVAE(responsive=3, background=2, penetrance=Mixture())
    pyro.set_rng_seed(0)
    story = Story(model, torch.tensor(DESIGN, dtype=torch.float32), 20, 1, 6, 3)
    guide = Amortized().build(story)
    x = torch.rand(8, 6)
    cells = Cells(x, x, torch.arange(8) % 4, torch.zeros(8, dtype=torch.long), torch.ones(8))
    in_story, in_guide = (poutine.trace(f).get_trace(cells, torch.arange(8)) for f in (story, guide))
    names = {n for n, s in in_story.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    assert names == {n for n, s in in_guide.nodes.items() if s["type"] == "sample"}
    assert in_guide.nodes["penetrance"]["value"].shape == (2, 1)
    TraceMeanField_ELBO()(story, guide)(cells, torch.arange(8)).backward()
    assert (guide.family.loc["penetrance"].grad != 0).all() and torch.isfinite(guide.family.loc["penetrance"].grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.parameters())
    assert not in_guide.nodes["z_r"]["fn"].logits.requires_grad


def test_a_law_that_no_guide_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="Normal"):
        encode(dist.Normal(0.0, 1.0), None, None, None, None)  # type: ignore[arg-type]
