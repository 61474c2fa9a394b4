"""Likelihoods: densities against scipy, moments against brute-force cells, links consistent with each other."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.story import Gaussian, NegativeBinomial, StudentT
from pvae_pyro.story.likelihoods import Likelihood
from pvae_pyro.story.likelihoods.table import count_moment_table, interpolate
from pvae_pyro.story.plates import Plates

ALL: list[Likelihood] = [
    Gaussian(), Gaussian(link="identity"), NegativeBinomial(), StudentT(), StudentT(link="identity", df=12.0, tails_from=0.0),
]  # fmt: skip


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SEEN = doubles(1.0)  # control level of genes that are seen well: the plain softplus link


@pytest.mark.parametrize("part", ALL, ids=str)
def test_slope_is_the_derivative_of_the_mean(part: Likelihood) -> None:
    eta = torch.linspace(-8, 8, 33, dtype=torch.float64).reshape(3, 11).requires_grad_()
    level = torch.linspace(0, 1.5, 11, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(part.mean(eta, level).sum(), eta)
    torch.testing.assert_close(part.slope(eta.detach(), level), gradient, rtol=1e-10, atol=1e-12)


def test_the_softplus_link_is_steeper_for_genes_hardly_seen() -> None:
    level, eta = doubles(2.0, 0.5, 0.1, 0.01), torch.linspace(-3, 3, 7, dtype=torch.float64).unsqueeze(1)
    found = Gaussian().mean(eta, level)
    for g, b in enumerate((1.0, 1.0, 5.0, 50.0)):  # max(1, 1/2 / level)
        np.testing.assert_allclose(found[:, g], np.logaddexp(0, b * eta[:, 0].numpy()) / b, rtol=1e-12)
    unseen = Gaussian().mean(eta, doubles(0.0))
    assert torch.isfinite(unseen).all() and (unseen >= 0).all()
    assert torch.equal(Gaussian(link="identity").mean(eta, level), eta)


def test_mean_of_counts_is_log1p_of_the_expected_rate() -> None:
    eta = torch.linspace(-6, 8, 15, dtype=torch.float64)
    torch.testing.assert_close(NegativeBinomial().mean(eta, SEEN), torch.log1p(eta.exp()))
    law = NegativeBinomial().law(eta.expand(2, 15), torch.ones(15, dtype=torch.float64), doubles(1e4, 500), SEEN)
    torch.testing.assert_close(law.base_dist.mean, torch.stack([eta.exp(), 0.05 * eta.exp()]))


def test_the_density_of_counts_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    eta, theta = rng.normal(0, 3, size=(6, 8)), rng.lognormal(0, 2, size=8)
    library = rng.lognormal(8, 1, size=6)
    counts = rng.poisson(5, size=(6, 8)) * rng.integers(0, 20, size=(6, 8))
    mean = library[:, None] / 1e4 * np.exp(eta)
    expected = stats.nbinom.logpmf(counts, theta, theta / (theta + mean)).sum(1)
    law = NegativeBinomial().law(torch.tensor(eta), torch.tensor(theta), torch.tensor(library), SEEN)
    assert law.batch_shape == (6,) and law.event_shape == (8,)
    np.testing.assert_allclose(law.log_prob(torch.tensor(counts, dtype=torch.float64)), expected, rtol=1e-9)


@pytest.mark.parametrize("link", ["softplus", "identity"])
def test_the_gaussian_density_is_that_of_scipy(link: str) -> None:
    rng = np.random.default_rng(1)
    eta, sd, x = rng.normal(size=(5, 4)), rng.uniform(0.1, 2, size=4), rng.normal(size=(5, 4))
    mean = np.logaddexp(0, eta) if link == "softplus" else eta
    law = Gaussian(link=link).law(torch.tensor(eta), torch.tensor(sd), torch.ones(5), SEEN)  # type: ignore[arg-type]
    np.testing.assert_allclose(law.log_prob(torch.tensor(x)), stats.norm.logpdf(x, mean, sd).sum(1), rtol=1e-10)


def brute_force(
    part: Likelihood, mean: Tensor, sd: Tensor, noise: Tensor, library: Tensor, n: int, seed: int, level: Tensor
) -> Tensor:
    """`n` cells whose predictor is Normal(mean, sd^2) and whose libraries are resampled, on the log scale."""
    generator = torch.Generator().manual_seed(seed)
    eta = mean + sd * torch.randn(n, len(mean), dtype=torch.float64, generator=generator)
    drawn = library[torch.randint(len(library), (n,), generator=generator)]
    if isinstance(part, NegativeBinomial):  # independent of simulate(): numpy's own negative binomial
        rng = np.random.default_rng(seed)
        mu = (drawn / 1e4).unsqueeze(1) * eta.exp()
        counts = rng.negative_binomial(noise.numpy(), (noise / (noise + mu)).numpy())
        return torch.log1p(torch.tensor(counts) * (1e4 / drawn).unsqueeze(1))
    if isinstance(part, StudentT):
        df = part.df * np.maximum(1, part.tails_from / level.numpy())
        return part.mean(eta, level) + noise * torch.tensor(np.random.default_rng(seed).standard_t(df, size=(n, len(mean))))
    return part.mean(eta, level) + noise * torch.randn(n, len(mean), dtype=torch.float64, generator=generator)


def check_moments(part: Likelihood, x: Tensor, first: Tensor, variance: Tensor, bias_mean: Tensor, bias_sd: float) -> None:
    """Sample moments of cells agree within 4.5 Monte Carlo errors plus the stated bias."""
    n = len(x)
    sd = x.std(0)
    assert ((x.mean(0) - first).abs() < 4.5 * sd / n**0.5 + bias_mean).all()
    fourth = ((x - x.mean(0)) ** 4).mean(0)
    error = (fourth - sd**4).clamp_min(0).sqrt() / n**0.5 / (2 * sd)  # of the sd, by the delta method
    assert ((sd - variance.sqrt()).abs() < 4.5 * error + bias_sd * sd).all()


@pytest.mark.parametrize("link", ["softplus", "identity"])
def test_the_student_t_density_is_that_of_scipy(link: str) -> None:
    """Every gene has its own degrees of freedom: 7 where the control mean is 4 or more, more below, at most 10,000."""
    rng = np.random.default_rng(8)
    level, df = doubles(6, 4, 2, 0.1, 1e-9), np.array([7, 7, 14, 280, 1e4])
    eta, scale, x = rng.normal(size=(6, 5)), rng.uniform(0.1, 2, size=5), 3 * rng.normal(size=(6, 5))
    part = StudentT(link=link, df=7.0, tails_from=4.0)  # type: ignore[arg-type]
    expected = stats.t.logpdf(x, df, part.mean(torch.tensor(eta), level).numpy(), scale)
    law = part.law(torch.tensor(eta), torch.tensor(scale), torch.ones(6), level)
    assert law.batch_shape == (6,) and law.event_shape == (5,)
    np.testing.assert_allclose(law.log_prob(torch.tensor(x)), expected.sum(1), rtol=1e-9)
    # in single precision, too, however many degrees of freedom: a difference of large logarithms of gamma functions
    single = part.law(torch.tensor(eta).float(), torch.tensor(scale).float(), torch.ones(6), level.float())
    found = single.base_dist.log_prob(torch.tensor(x).float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=1e-4, atol=2e-4)


def test_many_degrees_of_freedom_are_a_gaussian() -> None:
    eta, noise, level = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3), doubles(0.3, 1, 2), doubles(0.1, 1, 3)
    one, other = (part.law(eta, noise, SEEN, level) for part in (StudentT(df=1e7), Gaussian()))
    x = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", [Gaussian(), StudentT(), StudentT(df=2.5, tails_from=0.0)], ids=str)
def test_the_noise_of_an_sd_has_that_sd(part: Gaussian | StudentT) -> None:
    level, sd = doubles(0.01, 0.5, 2, 8), doubles(0.1, 0.5, 1, 2)
    torch.testing.assert_close(part.variance(part.noise_of(sd, level), level).sqrt(), sd)


def sparse_gene(share: float, size: float = 4.0, n: int = 4000) -> tuple[Tensor, Tensor]:
    """A gene that `share` of the cells show, around `size` on the log scale; its values and its mean as control level."""
    shown = (torch.arange(n) < share * n).double()
    x = shown * (size + 0.3 * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(9)))
    return x.unsqueeze(1), x.mean().reshape(1)


def best(part: StudentT | Gaussian, x: Tensor, level: Tensor) -> tuple[float, float]:
    """Location and scale of the highest likelihood, from the gene's mean and sd."""
    loc, log_scale = x.mean().reshape(1).requires_grad_(), x.std().log().reshape(1).requires_grad_()
    optimiser = torch.optim.LBFGS([loc, log_scale], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = -part.law(loc.expand_as(x), log_scale.exp().clamp_min(1e-5), x, level).log_prob(x).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return float(loc.detach()), float(log_scale.detach().exp())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_zeros_of_a_rare_gene_are_not_taken_for_its_centre(share: float) -> None:
    """What a shift is read off: the location stays near the mean, and the scale near the sd."""
    x, level = sparse_gene(share)
    mean, sd = float(x.mean()), float(x.std())
    assert best(Gaussian(link="identity"), x, level) == pytest.approx((mean, sd), rel=0.01)
    loc, scale = best(StudentT(link="identity"), x, level)
    assert loc == pytest.approx(mean, rel=0.2) and scale == pytest.approx(sd, rel=0.2)


def test_with_the_same_tails_for_all_genes_they_are() -> None:
    """Why `tails_from` is there: fewer than 1 / (1 + df) of the cells show the gene, and the likelihood has no maximum."""
    part = StudentT(link="identity", df=10.0, tails_from=0.0)
    values = {}
    for share in (0.05, 0.2):
        x, level = sparse_gene(share)
        heights = [float(part.law(torch.zeros_like(x), doubles(s), x, level).log_prob(x).sum()) for s in (0.1, 1e-2, 1e-3, 1e-4)]
        values[share] = np.diff(heights)
    assert (values[0.05] > 0).all() and (values[0.2] < 0).all()
    x, level = sparse_gene(0.2)  # a maximum, but not at the mean
    assert best(part, x, level)[0] < 0.7 * float(x.mean())


@pytest.mark.parametrize("link", ["softplus", "identity"])
@pytest.mark.parametrize("kind", [Gaussian, StudentT])
def test_moments_on_log_expression_are_those_of_cells(kind: type[Gaussian | StudentT], link: str) -> None:
    part = kind(link=link)  # type: ignore[arg-type]
    mean = doubles(-5, -3, -1, 0, 0.5, 2, 5, 0, 0)
    sd = doubles(0.5, 1, 1.5, 0, 0.1, 1, 1.5, 1.5, 1)
    noise = doubles(0.05, 0.2, 0.3, 0.4, 0.5, 0.1, 0.3, 1e-6, 1)
    level = doubles(2, 2, 2, 2, 2, 2, 2, 2, 0.4)  # the last link is a quarter steeper
    library = torch.ones(3, dtype=torch.float64)
    first, variance = part.moments(noise, library, level)(mean, sd**2, noise)
    x = brute_force(part, mean, sd, noise, library, 200_000, 2, level)
    # seven nodes: exact to 1e-4 in the mean and to 0.4 % in the sd for spreads up to 1.5
    check_moments(part, x, first, variance, torch.full_like(mean, 1e-4), 0.004)


def test_softplus_moments_by_finer_quadrature() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    mean = np.linspace(-6, 5, 23)
    for sd, tolerance in ((0.3, 1e-9), (1.0, 4e-6), (1.5, 1.2e-4)):
        value = np.logaddexp(0, mean[:, None] + sd * nodes)
        m1, m2 = value @ weights, value**2 @ weights
        part = Gaussian().moments(doubles(0.3), doubles(1.0), SEEN)
        first, variance = part(torch.tensor(mean), torch.full((23,), sd**2, dtype=torch.float64), doubles(0.3))
        np.testing.assert_allclose(first, m1, atol=tolerance, rtol=0)
        np.testing.assert_allclose(variance, m2 - m1**2 + 0.09, rtol=60 * tolerance)


# rates per 10,000 from one cell in 1,300 with a count to 1,000, inverse dispersions from 0.2 to nearly Poisson
RATE = doubles(0.0025, 0.1, 1, 10, 100, 1000)
CASES = [(r, t) for r in RATE.tolist() for t in (0.2, 1.0, 10.0, 1e4)]


@pytest.mark.parametrize("eta_sd", [0.0, 0.5, 1.0])
def test_count_moments_are_those_of_cells(eta_sd: float) -> None:
    part, (rate, theta) = NegativeBinomial(), torch.tensor(CASES, dtype=torch.float64).T
    library = torch.tensor(np.random.default_rng(3).lognormal(math.log(3000), 0.4, size=500))
    mean, sd = rate.log(), torch.full_like(rate, eta_sd)
    first, variance = part.moments(theta, library, SEEN)(mean, sd**2, theta)
    x = brute_force(part, mean, sd, theta, library, 40_000, 4, SEEN)
    # bias: interpolation over the table's grid, twelve quantiles for the libraries, and the expansion for many counts
    check_moments(part, x, first, variance, torch.where(rate > 50, 0.01, 0.002), 0.015)


def test_the_count_table_is_the_sum_over_counts() -> None:
    theta, size = doubles(0.1, 0.5, 5, 500), 2000.0
    grid, table = count_moment_table(theta, doubles(size, size))
    assert table.shape == (2, 4, len(grid)) and grid[0] == -10
    counts = np.arange(40_000)
    value = np.log1p(counts * 1e4 / size)
    for point in (0, 40, 80, 100, 122):  # expected counts up to 40
        mean = size / 1e4 * math.exp(float(grid[point]))
        for g, t in enumerate(theta.tolist()):
            p = stats.nbinom.pmf(counts, t, t / (t + mean))
            np.testing.assert_allclose(table[:, g, point], [(p * value).sum(), (p * value**2).sum()], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("theta", [0.2, 1.0, 5.0, 500.0])
def test_the_expansion_for_many_counts_joins_the_sum(theta: float) -> None:
    size = 2000.0
    grid, table = count_moment_table(doubles(theta), doubles(size, size))
    counts = np.arange(120_000)
    value = np.log1p(counts * 1e4 / size)
    switch = int((grid > math.log(60 * 1e4 / size)).double().argmax())  # first point of the expansion
    for point in (switch - 1, switch, switch + 8):
        p = stats.nbinom.pmf(counts, theta, theta / (theta + size / 1e4 * math.exp(float(grid[point]))))
        m1, m2 = (p * value).sum(), (p * value**2).sum()
        assert abs(float(table[0, 0, point]) - m1) < 0.03  # rates near one of a gene of 0.2: second order is not all
        sd = math.sqrt(float(table[1, 0, point] - table[0, 0, point] ** 2))
        assert sd == pytest.approx(math.sqrt(m2 - m1**2), rel=0.015)


def test_narrow_laws_keep_their_width_between_grid_points() -> None:
    rate, theta = 1000.0, doubles(1e4)  # 300 counts expected, nearly Poisson: an sd of 0.06 on the log scale
    part = NegativeBinomial().moments(theta, doubles(3000.0, 3000.0), SEEN)
    counts = np.arange(5000)
    for step in np.linspace(0, 0.125, 6):
        mean = 0.3 * rate * math.exp(step)
        p = stats.nbinom.pmf(counts, 1e4, 1e4 / (1e4 + mean))
        value = np.log1p(counts / 0.3)
        exact = (p * value**2).sum() - (p * value).sum() ** 2
        _, variance = part(doubles(math.log(rate) + step), doubles(0.0), theta)
        assert float(variance) == pytest.approx(exact, rel=0.02)


def test_interpolation_is_exact_on_the_grid_and_linear_between() -> None:
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64)
    table = torch.stack([torch.stack([3 * grid, grid**2]), torch.stack([1 - grid, 0 * grid])])  # (2, genes, points)
    eta = doubles(-2, -0.75, 0.1, 1.9).reshape(2, 2, 1).expand(2, 2, 2)
    first, second = interpolate(grid, table, eta)
    torch.testing.assert_close(first[..., 0], 3 * eta[..., 0])
    torch.testing.assert_close(second[..., 0], 1 - eta[..., 0])
    assert float(first[0, 0, 1]) == pytest.approx(4) and float(first[0, 1, 1]) == pytest.approx((1 + 0.25) / 2)
    outside, _ = interpolate(grid, table, doubles(-9, 9).reshape(1, 2))
    assert float(outside[0, 0]) == pytest.approx(-6) and float(outside[0, 1]) == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize("part", ALL, ids=str)
def test_simulated_cells_have_the_moments(part: Likelihood) -> None:
    counts = isinstance(part, NegativeBinomial)
    mean = doubles(-6, -2, 0, 2, 5)
    noise = doubles(0.5, 2, 5, 0.3, 50) if counts else doubles(0.1, 0.5, 1, 0.2, 2)
    library = doubles(1000, 2500, 6000) if counts else torch.ones(3, dtype=torch.float64)
    # all three libraries in the table: only then are twelve quantiles of the three exact thirds
    level = doubles(2, 2, 0.3, 2, 2)
    n = 60_000
    eta, cells = mean.expand(n, 5), library.repeat(n // 3)
    x = part.simulate(eta.float(), noise.float(), cells.float(), level.float(), torch.Generator().manual_seed(5)).double()
    assert x.shape == (n, 5)
    first, variance = part.moments(noise, cells, level)(mean, torch.zeros_like(mean), noise)
    bias = torch.where(mean > 4, 0.01, 0.001) if counts else torch.full_like(mean, 1e-6)
    check_moments(part, x, first, variance, bias.double(), 0.01 if counts else 1e-6)


def test_simulated_counts_are_whole_and_repeat() -> None:
    eta, theta, library = torch.zeros(50, 4), torch.ones(4), torch.linspace(500, 9000, 50)
    part = NegativeBinomial()
    x, again = (part.simulate(eta, theta, library, SEEN, torch.Generator().manual_seed(6)) for _ in range(2))
    assert torch.equal(x, again)
    counts = torch.expm1(x.double()) * (library.double() / 1e4).unsqueeze(1)
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    assert counts.max() > 1


@pytest.mark.parametrize("part", ALL, ids=str)
def test_the_noise_site_is_centred_on_its_start(part: Likelihood) -> None:
    start = torch.tensor([0.2, 1.0, 30.0])
    pyro.set_rng_seed(7)
    trace = poutine.trace(part.sample).get_trace(Plates.make(2, 2, 2, 3), start)
    law = trace.nodes["noise"]["fn"]
    torch.testing.assert_close(law.base_dist.loc, start.log())
    assert trace.nodes["noise"]["value"].shape == (3,) and [f.name for f in trace.nodes["noise"]["cond_indep_stack"]] == ["genes"]


def test_an_extreme_predictor_stays_finite() -> None:
    eta = torch.tensor([[-1e4, 1e4, 80.0]])
    law = NegativeBinomial().law(eta, torch.ones(3), torch.tensor([3000.0]), SEEN)
    assert torch.isfinite(law.log_prob(torch.tensor([[0.0, 5.0, 0.0]]))).all()


def test_an_unknown_link_is_refused() -> None:
    for part in (Gaussian, StudentT):
        with pytest.raises(InputError, match="link"):
            part(link="log")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"df": 2.0}, {"df": math.nan}, {"df": math.inf}, {"tails_from": -1.0}])
def test_impossible_tails_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        StudentT(**wrong)
