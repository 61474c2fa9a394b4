"""StructuralNormal against a multivariate normal with covariance (I - L)^-1 diag(s^2) (I - L)^-T, and its closed-form KL."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import pvae_pyro.guides.amortized  # noqa: F401  (registers the KL)
from pvae_pyro.story.latents import StructuralNormal, carried, propagate


def random_parts(seed: int, latents: int, *batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise mean and sd (*batch, latents), and a dense strictly lower triangular graph, in double precision."""
    rng = np.random.default_rng(seed)
    mean = torch.tensor(rng.normal(size=(*batch, latents)))
    scale = torch.tensor(rng.uniform(0.3, 2.0, size=(*batch, latents)))
    return mean, torch.tensor(np.tril(rng.normal(0, 0.7, size=(latents, latents)), -1)), scale


def as_multivariate(mean: Tensor, graph: Tensor, scale: Tensor) -> MultivariateNormal:
    """The same law by an explicit inverse."""
    inverse = torch.linalg.inv(torch.eye(len(graph), dtype=graph.dtype) - graph)
    covariance = inverse @ torch.diag_embed(scale**2) @ inverse.T
    return MultivariateNormal(mean @ inverse.T, covariance)


@pytest.mark.parametrize("latents", [1, 2, 6])
def test_log_density_is_that_of_the_multivariate_normal(latents: int) -> None:
    mean, graph, scale = random_parts(0, latents, 5)
    value = 2 * torch.randn(7, 5, latents, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = as_multivariate(mean, graph, scale).log_prob(value)
    found = StructuralNormal(mean, graph, scale).log_prob(value)
    assert found.shape == (7, 5)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_mean_and_scale_broadcast_and_expand() -> None:
    mean, graph, _ = random_parts(2, 3, 4)
    law = StructuralNormal(mean, graph, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    assert law.batch_shape == (4,) and law.event_shape == (3,)
    wide = law.expand(torch.Size([6, 4]))
    assert wide.batch_shape == (6, 4) and wide.rsample().shape == (6, 4, 3)
    value = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(wide.log_prob(value), law.log_prob(value))


def test_samples_have_the_moments() -> None:
    mean, graph, scale = random_parts(4, 4)
    n = 40_000
    torch.manual_seed(5)
    draws = StructuralNormal(mean, graph, scale).rsample(torch.Size([n]))
    exact = as_multivariate(mean, graph, scale)
    sd = exact.variance.sqrt()
    z = (draws.mean(0) - exact.mean) / (sd / n**0.5)
    assert z.abs().max() < 4.5
    # variance of a product moment of normals: C_ii C_jj + C_ij^2
    covariance = exact.covariance_matrix
    error = (torch.outer(sd, sd) ** 2 + covariance**2).sqrt() / n**0.5
    assert ((torch.cov(draws.T) - covariance) / error).abs().max() < 4.5
    torch.testing.assert_close(StructuralNormal(mean, graph, scale).mean, exact.mean)


def test_samples_carry_gradients_of_mean_scale_and_graph() -> None:
    mean, graph, scale = (p.requires_grad_() for p in random_parts(6, 3))
    torch.manual_seed(7)
    noise = torch.randn(3, dtype=torch.float64)

    def sample(mean: Tensor, graph: Tensor, scale: Tensor) -> Tensor:
        torch.manual_seed(7)
        return StructuralNormal(mean, torch.tril(graph, -1), scale).rsample()

    source = (mean + scale * noise).detach()
    inverse = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - graph.detach())
    torch.testing.assert_close(sample(mean, graph, scale), inverse @ source)
    assert torch.autograd.gradcheck(sample, (mean, graph, scale))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 5)])
def test_propagate_is_multiplication_by_the_inverse(shape: tuple[int, ...]) -> None:
    source, graph, _ = random_parts(8, 4, *shape)
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) - graph)
    torch.testing.assert_close(propagate(source, graph), source @ inverse.T, rtol=1e-12, atol=1e-12)


def test_a_source_reaches_descendants_only() -> None:
    graph = torch.zeros(3, 3)
    graph[2, 1] = 0.5  # latent 1 drives latent 2
    moved = propagate(torch.eye(3), graph)
    torch.testing.assert_close(moved, torch.tensor([[1.0, 0, 0], [0, 1, 0.5], [0, 0, 1]]))


def factorised(seed: int, latents: int, *batch: int) -> dist.Independent:
    """A normal with independent coordinates, as the guide states it."""
    mean, _, scale = random_parts(seed, latents, *batch)
    return dist.Normal(mean, scale).to_event(1)


@pytest.mark.parametrize("latents", [1, 2, 5])
def test_closed_form_kl_is_that_of_two_multivariate_normals(latents: int) -> None:
    q, (mean, graph, scale) = factorised(9, latents, 6), random_parts(10, latents, 6)
    as_q = MultivariateNormal(q.base_dist.loc, torch.diag_embed(q.base_dist.scale**2))
    expected = kl_divergence(as_q, as_multivariate(mean, graph, scale))
    found = kl_divergence(q, StructuralNormal(mean, graph, scale))
    assert found.shape == (6,)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_closed_form_kl_agrees_with_monte_carlo() -> None:
    q, p = factorised(11, 4), StructuralNormal(*random_parts(12, 4))
    torch.manual_seed(13)
    draws = q.sample((50_000,))
    ratio = q.log_prob(draws) - p.log_prob(draws)
    z = (ratio.mean() - kl_divergence(q, p)) / (ratio.std() / len(ratio) ** 0.5)
    assert abs(float(z)) < 4


def test_kl_of_a_law_from_itself_is_zero() -> None:
    q = factorised(14, 3, 2)
    same = StructuralNormal(q.base_dist.loc, torch.zeros(3, 3, dtype=torch.float64), q.base_dist.scale)
    torch.testing.assert_close(kl_divergence(q, same), torch.zeros(2, dtype=torch.float64))


def graphs_of_rows(seed: int, latents: int, *batch: int) -> Tensor:
    """Dense strictly lower triangular graphs (*batch, latents, latents), in double precision."""
    return torch.tensor(np.tril(np.random.default_rng(seed).normal(0, 0.7, size=(*batch, latents, latents)), -1))


# latents from causes to effects, in an order that is not their own
ORDER = torch.tensor([2, 0, 3, 1])


@pytest.fixture(params=["as numbered", "in another order"])
def rows(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Mean and sd (5, 4) of the noise, a graph for each row (5, 4, 4), and the order in which these are triangular."""
    mean, _, scale = random_parts(15, 4, 5)
    graph = graphs_of_rows(16, 4, 5)
    if request.param == "as numbered":
        return mean, graph, scale, None
    back = ORDER.argsort()
    return mean, graph[:, back][:, :, back], scale, ORDER


Rows = tuple[Tensor, Tensor, Tensor, Tensor | None]


def test_every_row_has_the_density_moments_and_kl_of_its_own_graph(rows: Rows) -> None:
    mean, graph, scale, order = rows
    law, q = StructuralNormal(mean, graph, scale, order), factorised(17, 4, 5)
    value = 2 * torch.randn(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(18))
    expected = [as_multivariate(mean[i], graph[i], scale[i]) for i in range(5)]
    torch.testing.assert_close(law.log_prob(value), torch.stack([e.log_prob(value[:, i]) for i, e in enumerate(expected)], 1))
    torch.testing.assert_close(law.mean, torch.stack([e.mean for e in expected]))
    as_q = [MultivariateNormal(m, torch.diag(s**2)) for m, s in zip(q.base_dist.loc, q.base_dist.scale, strict=True)]
    kl = torch.stack([kl_divergence(one, e) for one, e in zip(as_q, expected, strict=True)])
    torch.testing.assert_close(kl_divergence(q, law), kl)
    torch.manual_seed(19)
    n = 20_000
    draws = law.expand(torch.Size([5])).rsample(torch.Size([n]))
    for i, e in enumerate(expected):
        assert ((draws[:, i].mean(0) - e.mean) / (e.variance / n).sqrt()).abs().max() < 4.5
        error = ((torch.outer(e.variance, e.variance) + e.covariance_matrix**2) / n).sqrt()
        assert ((torch.cov(draws[:, i].T) - e.covariance_matrix) / error).abs().max() < 4.5


def test_sources_and_loadings_pass_the_graph_as_by_its_inverse(rows: Rows) -> None:
    mean, graph, _, order = rows
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) - graph)
    torch.testing.assert_close(propagate(mean, graph, order), (inverse @ mean.unsqueeze(-1)).squeeze(-1))
    many = torch.stack([mean, mean + 1])  # a leading dimension that the graphs do not have
    torch.testing.assert_close(propagate(many, graph, order), (inverse @ many.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(propagate(mean, graph[0], order), mean @ inverse[0].T)  # one graph for all rows
    loadings = random_parts(20, 7, 4)[0]
    torch.testing.assert_close(carried(loadings, graph, order), inverse.mT @ loadings)
    torch.testing.assert_close(carried(loadings, graph[1], order), inverse[1].T @ loadings)


def test_gradients_pass_the_graphs_of_rows(rows: Rows) -> None:
    mean, graph, scale, order = rows
    parts = [p.clone().requires_grad_() for p in (mean, graph, scale)]
    allowed = graph != 0  # the entries that are free; others never move

    def density(mean: Tensor, graph: Tensor, scale: Tensor) -> Tensor:
        law = StructuralNormal(mean, graph * allowed, scale, order)
        return kl_divergence(factorised(21, 4, 5), law) + law.mean.sum(-1)

    assert torch.autograd.gradcheck(density, parts)
