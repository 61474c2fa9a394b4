"""Escaping cells in the story: the mixture's density, samples and limits, rates of conditions, a program unchanged without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pvae_pyro.errors import InputError
from pvae_pyro.story import Cells, Full, Interaction, Mixture, ModulatedGraph, Story
from pvae_pyro.story.latents import StructuralMixture, StructuralNormal
from pvae_pyro.story.penetrance.escape import fit_escape

Build = Callable[..., Story]
CellsOf = Callable[..., Cells]
DESIGN = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0.5, 0], [1, 1, 0], [0, 1, 2], [1, 1, 1]], dtype=torch.float64)
SHARES = torch.tensor([[0.9], [0.5], [0.8]], dtype=torch.float64)


def parts(seed: int, latents: int, *batch: int) -> tuple[Tensor, StructuralNormal, StructuralNormal]:
    """Rates and two laws with graphs of their own, in double precision."""
    rng = np.random.default_rng(seed)

    def law() -> StructuralNormal:
        graph = torch.tensor(np.tril(rng.normal(0, 0.7, size=(latents, latents)), -1))
        mean, scale = rng.normal(0, 1.5, size=(*batch, latents)), rng.uniform(0.3, 1.5, size=(*batch, latents))
        return StructuralNormal(torch.tensor(mean), graph, torch.tensor(scale))

    return torch.tensor(rng.uniform(0.2, 0.9, size=batch)), law(), law()


def dense(law: StructuralNormal) -> MultivariateNormal:
    inverse = torch.linalg.inv(torch.eye(law.graph.shape[0], dtype=torch.float64) - law.graph)
    covariance = inverse @ torch.diag_embed(law.scale.square()) @ inverse.T
    return MultivariateNormal(law.mean_noise @ inverse.T, covariance)


def test_log_density_is_that_of_a_mixture_of_multivariate_normals() -> None:
    rate, one, other = parts(0, 4, 5)
    both = [dense(one), dense(other)]
    components = MultivariateNormal(
        torch.stack([b.loc for b in both], -2), torch.stack([b.covariance_matrix for b in both], -3)
    )
    expected = MixtureSameFamily(Categorical(torch.stack([rate, 1 - rate], -1)), components)
    value = 2 * torch.randn(7, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    law = StructuralMixture(rate, one, other)
    torch.testing.assert_close(law.log_prob(value), expected.log_prob(value), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(law.mean, expected.mean)
    wide = law.expand(torch.Size([3, 5]))
    assert wide.batch_shape == (3, 5) and wide.sample((2,)).shape == (2, 3, 5, 4)
    torch.testing.assert_close(wide.log_prob(value[:3]), law.log_prob(value[:3]))


def test_in_one_dimension_the_density_integrates_to_one() -> None:
    rate, one, other = parts(2, 1)
    grid = torch.linspace(-15, 15, 30_001, dtype=torch.float64).unsqueeze(-1)
    density = StructuralMixture(rate, one, other).log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid.squeeze(-1))) == pytest.approx(1, abs=1e-9)
    assert float(torch.trapezoid(density * grid.squeeze(-1), grid.squeeze(-1))) == pytest.approx(
        float(rate * one.mean + (1 - rate) * other.mean), abs=1e-9
    )


def test_samples_have_the_density_along_a_projection_and_its_moments() -> None:
    rate, one, other = parts(3, 4)
    torch.manual_seed(4)
    n = 20_000
    drawn = StructuralMixture(rate, one, other).sample(torch.Size([n]))
    mean, covariance = zip(*((d.loc, d.covariance_matrix) for d in (dense(one), dense(other))), strict=True)
    gap = mean[0] - mean[1]
    total = rate * covariance[0] + (1 - rate) * covariance[1] + rate * (1 - rate) * torch.outer(gap, gap)
    sd = total.diagonal().sqrt()
    assert ((drawn.mean(0) - rate * mean[0] - (1 - rate) * mean[1]) / (sd / n**0.5)).abs().max() < 4.5
    # fourth moments of the mixture are bounded by those of its wider component: 8 covers them
    assert ((torch.cov(drawn.T) - total) / (torch.outer(sd, sd) * (8 / n) ** 0.5)).abs().max() < 4
    axis = gap / gap.norm()  # where the two are furthest apart

    def cdf(x: np.ndarray) -> np.ndarray:
        both = zip(mean, covariance, strict=True)
        halves = [stats.norm.cdf(x, float(m @ axis), float(axis @ c @ axis) ** 0.5) for m, c in both]
        return float(rate) * halves[0] + (1 - float(rate)) * halves[1]

    assert stats.kstest((drawn @ axis).numpy(), cdf).pvalue > 1e-3
    wrong = stats.norm(float((drawn @ axis).mean()), float((drawn @ axis).std()))  # one normal is not enough
    assert stats.kstest((drawn @ axis).numpy(), wrong.cdf).pvalue < 1e-6


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_at_the_ends_it_is_one_component_with_finite_gradients(rate: float) -> None:
    _, one, other = parts(5, 3, 2)
    share = torch.full((2,), rate, dtype=torch.float64, requires_grad=True)
    left = one if rate else other
    found = StructuralMixture(share, one, other).log_prob(left.mean)
    torch.testing.assert_close(found, left.log_prob(left.mean), atol=1e-4, rtol=0)
    found.sum().backward()
    assert share.grad is not None and torch.isfinite(share.grad).all()


def test_rates_of_conditions_by_hand() -> None:
    least = Mixture().rate(SHARES, DESIGN)
    assert least.tolist() == pytest.approx([1.0, 0.9, 0.5, 0.5, 0.5, 0.5])
    product = Mixture(combined="product").rate(SHARES, DESIGN)
    assert product.tolist() == pytest.approx([1.0, 0.9, 0.5, 0.45, 0.4, 0.36])
    order = torch.tensor([2, 0, 1])
    for part in (Mixture(), Mixture(combined="product")):
        assert torch.equal(part.rate(SHARES[order], DESIGN[:, order]), part.rate(SHARES, DESIGN))
        assert part.rate(SHARES[:0], DESIGN[:1, :0]).tolist() == [1.0]  # a control that is asked for on its own
    assert Full().rate(SHARES, DESIGN).tolist() == [1.0] * 6


def test_the_site_has_the_stated_prior(build: Build) -> None:
    story = build(design=np.concatenate([np.zeros((1, 1500)), np.eye(1500)]), penetrance=Mixture(centre=0.8, strength=5.0))
    trace = poutine.trace(lambda: story.model.penetrance.sample(story.plates(), story.effect_scale)).get_trace()
    rho = trace.nodes["penetrance"]["value"]
    assert rho.shape == (1500, 1) and [f.name for f in trace.nodes["penetrance"]["cond_indep_stack"]] == ["targets"]
    assert stats.kstest(rho.numpy().ravel(), stats.beta(4.0, 1.0).cdf).pvalue > 1e-3


def test_on_adds_one_site_and_off_none(build: Build, cells_of: CellsOf) -> None:
    def names(story: Story) -> set[str]:
        return set(poutine.trace(story).get_trace(cells_of(story, 5)).nodes)

    off, on = names(build()), names(build(penetrance=Mixture()))
    assert on - off == {"penetrance"} and off <= on and off == names(build(penetrance=Full()))


def test_off_is_bit_for_bit_the_program_without_the_part(
    build: Build, cells_of: CellsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = build(penetrance=Full())
    cells = cells_of(story, 9)

    def run() -> tuple[dict[str, Tensor], Tensor]:
        pyro.set_rng_seed(3)
        trace = poutine.trace(story).get_trace(cells, torch.arange(9))
        return {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}, trace.log_prob_sum()

    with_part, density = run()
    monkeypatch.setattr(Story, "responsive_law", Story.full_law)  # z_r as it was before there was a choice
    without, other = run()
    assert torch.equal(density, other) and with_part.keys() == without.keys()
    assert all(torch.equal(value, without[name]) for name, value in with_part.items())


@pytest.mark.parametrize("seed", [0, 1])
def test_cells_follow_the_mixture_of_their_condition_and_of_control(seed: int, build: Build, cells_of: CellsOf) -> None:
    """The density of z_r, cell by cell, by scipy and explicit inverses, with a graph that depends on u."""
    graph = ModulatedGraph(density=0.6, modulation=0.4, coupling=0.3)
    story = build(penetrance=Mixture(combined="product"), graph=graph).double()
    cells = cells_of(story, 12, seed)
    cells = Cells(cells.expression.double(), cells.observed.double(), cells.condition, cells.batch, cells.library.double())
    pyro.set_rng_seed(seed)
    trace = poutine.trace(story).get_trace(cells)
    value = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}
    with poutine.block(), poutine.condition(data=value):
        g = story.globals()
    design, rho = story.design.numpy(), value["penetrance"][:, 0].numpy()
    trace.compute_log_prob()
    for c in range(12):
        densities = []
        for d in (int(cells.condition[c]), 0):
            inverse = np.linalg.inv(np.eye(4) - g.graph[d].numpy())
            variance = np.exp(np.clip(design[d] @ g.log_variance.numpy(), -2, 2))
            mean = inverse @ (value["z_b"][c].numpy() @ g.coupling[d].numpy() + g.shift[d].numpy())
            covariance = inverse @ np.diag(variance) @ inverse.T
            densities.append(stats.multivariate_normal.pdf(value["z_r"][c].numpy(), mean, covariance))
        rate = np.prod(rho[design[int(cells.condition[c])] != 0])
        expected = np.log(rate * densities[0] + (1 - rate) * densities[1])
        assert float(trace.nodes["z_r"]["unscaled_log_prob"][c]) == pytest.approx(expected, abs=2e-5)
    assert not torch.equal(g.graph[0], g.graph[1])


def test_the_residual_of_a_combination_is_scaled_by_its_rate(build: Build) -> None:
    story = build(penetrance=Mixture(), interaction=Interaction(outside=0.3))
    trace = poutine.trace(story.globals).get_trace()
    g = trace.nodes["_RETURN"]["value"]
    rho = trace.nodes["penetrance"]["value"][:, 0]
    rate = torch.stack([torch.minimum(rho[0], rho[1]), torch.minimum(rho[1], rho[2])])
    torch.testing.assert_close(g.rate[4:], rate)
    torch.testing.assert_close(g.residual[4:], rate.unsqueeze(1) * trace.nodes["residual"]["value"])
    assert not g.residual[:4].any() and g.residual[4:].any()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"centre": 1.0}, "centre"), ({"strength": 0.0}, "strength"), ({"combined": "sum"}, "'least', 'product'")],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Mixture(**wrong)  # type: ignore[arg-type]


def escapers(n: int, shift: float, targets: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rates from Beta(4.5, 1.5), and n cells of each target of which that share lies at `shift`."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    rho, target = torch.tensor(rng.beta(4.5, 1.5, targets)), torch.arange(targets).repeat_interleave(n)
    responds = torch.rand(len(target), generator=generator, dtype=torch.float64) < rho[target]
    return rho, target, torch.randn(len(target), generator=generator, dtype=torch.float64) + shift * responds


@pytest.mark.parametrize("shift", [2.0, 3.0])
def test_the_closed_form_finds_rates_with_honest_intervals(shift: float) -> None:
    rho, target, along = escapers(150, shift, 400)
    share, sd = fit_escape(along, target, torch.arange(400), 400, 4.5, 1.5)
    z = (torch.logit(share) - torch.logit(rho)) / sd
    # 400 targets: the standard error of a coverage of 0.90 is 0.015
    assert 0.85 < float((z.abs() < 1.645).double().mean()) < 0.95
    assert abs(float((share - rho).mean())) < 0.015


def test_without_visible_effect_the_rate_stays_at_its_prior() -> None:
    _, target, along = escapers(150, 0.0, 100)
    share, sd = fit_escape(along, target, torch.arange(100), 101, 9.0, 1.0)
    assert float((share[:100] - 0.9).abs().mean()) < 0.05 and float(share[100]) == pytest.approx(0.9)
    assert float(sd[100]) == pytest.approx((10 * 0.9 * 0.1) ** -0.5)  # no cell: the prior's own spread
    assert float(sd[:100].median()) > 0.7 * float(sd[100])


def test_two_doses_of_a_target_share_its_rate() -> None:
    generator = torch.Generator().manual_seed(1)
    condition = torch.arange(2).repeat_interleave(2000)
    responds = torch.rand(4000, generator=generator, dtype=torch.float64) < 0.6
    along = torch.randn(4000, generator=generator, dtype=torch.float64) + torch.tensor([1.5, 4.0])[condition] * responds
    share, sd = fit_escape(along, condition, torch.tensor([0, 0]), 1, 9.0, 1.0)
    alone, wider = fit_escape(along[condition == 0], condition[condition == 0], torch.tensor([0]), 1, 9.0, 1.0)
    assert float(share) == pytest.approx(float(responds.double().mean()), abs=0.03) and float(sd) < float(wider)
