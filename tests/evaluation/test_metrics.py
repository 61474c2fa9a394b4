"""Every metric against brute force, and on degenerate input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.stats import norm

from pvae_pyro.evaluation import metrics

pytestmark = pytest.mark.filterwarnings("error")


def slow_crps(draws: np.ndarray, y: float) -> float:
    """The definition, with its double sum."""
    count = len(draws)
    spread = sum(abs(a - b) for a in draws for b in draws)
    return float(np.mean(np.abs(draws - y)) - spread / (2 * count * (count - 1)))


def test_l2_is_the_square_root_of_a_sum_over_genes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 7))
    expected = [
        sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) ** 0.5 for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(metrics.l2(a, b), expected)


def test_delta_pearson_is_numpys_correlation_of_the_shifts() -> None:
    rng = np.random.default_rng(1)
    a, b, control = rng.normal(size=(5, 30)), rng.normal(size=(5, 30)), rng.normal(size=30)
    values, undefined = metrics.delta_pearson(a, b, control)
    expected = [np.corrcoef(p - control, q - control)[0, 1] for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert not undefined.any()


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_delta_pearson_of_a_constant_shift_is_zero_and_counted(offset: float) -> None:
    rng = np.random.default_rng(2)
    control, truth = rng.normal(size=(2, 200))
    for pair in ((control + offset, truth), (truth, control + offset)):
        values, undefined = metrics.delta_pearson(pair[0][None], pair[1][None], control)
        assert values.tolist() == [0.0] and undefined.tolist() == [True]


def test_delta_pearson_ignores_scale_and_order_of_genes() -> None:
    rng = np.random.default_rng(3)
    a, b, control = rng.normal(size=(3, 40))
    order = rng.permutation(40)
    base = metrics.delta_pearson(a, b, control)[0]
    scaled = metrics.delta_pearson(control + 1e-3 * (a - control), b, control)[0]
    permuted = metrics.delta_pearson(a[order], b[order], control[order])[0]
    np.testing.assert_allclose([scaled, permuted], base, atol=1e-9)


def test_mse_terms_by_hand() -> None:
    excess, effect = metrics.mse_terms([[1.0, 2.0]], [[2.0, 4.0]], [0.0, 0.0], [0.5], 0.1, [0.3])
    assert excess[0] == pytest.approx((5.0 - 0.3 - 0.5) / 2)
    assert effect[0] == pytest.approx((20.0 - 0.5 - 0.1) / 2)
    capped, _ = metrics.mse_terms([[1.0, 2.0]], [[2.0, 4.0]], [0.0, 0.0], [0.5], 0.1, [9.0])
    assert capped[0] == pytest.approx((5.0 - 0.5 - 0.5) / 2)


def test_mse_ratio_is_unbiased_for_the_truth_and_one_for_no_change() -> None:
    rng = np.random.default_rng(4)
    cells, genes, repeats = 20, 30, 4000
    control, mu, sd = rng.normal(size=genes), rng.normal(size=genes), rng.uniform(0.5, 2, size=genes)
    x = mu + rng.normal(size=(repeats, genes)) * sd / np.sqrt(cells)
    noise = np.full(repeats, (sd**2).sum() / cells)
    perfect, effect = metrics.mse_terms(np.tile(mu, (repeats, 1)), x, control, noise, 0.0)
    assert abs(perfect.mean()) < 4 * perfect.std() / np.sqrt(repeats)
    assert effect.mean() == pytest.approx(((mu - control) ** 2).mean(), rel=0.02)
    none, effect = metrics.mse_terms(np.tile(control, (repeats, 1)), x, control, noise, 0.0)
    assert metrics.mse_ratio(none, effect) == pytest.approx(1.0)


def test_mse_ratio_is_undefined_without_an_effect() -> None:
    assert np.isnan(metrics.mse_ratio([1.0], [-0.1]))
    assert np.isnan(metrics.mse_ratio([0.0], [0.0]))


@given(
    arrays(float, st.integers(2, 9), elements=st.floats(-5, 5)),
    st.floats(-5, 5),
)
@settings(max_examples=60, deadline=None)
def test_crps_of_samples_is_its_definition_with_any_ties(draws: np.ndarray, y: float) -> None:
    assert metrics.crps_samples(draws, np.float64(y)) == pytest.approx(slow_crps(draws, y), abs=1e-10)


def test_crps_of_two_draws_is_unbiased() -> None:
    support, y = np.array([0.0, 1.0, 5.0]), 2.0
    pairs = list(itertools.product(support, support))
    estimate = np.mean([metrics.crps_samples(np.array(pair), np.float64(y)) for pair in pairs])
    exact = np.abs(support - y).mean() - 0.5 * np.abs(support[:, None] - support).mean()
    assert estimate == pytest.approx(exact)


def test_crps_of_samples_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    draws, y = rng.normal(size=(11, 3, 17)).astype(np.float32), rng.normal(size=(3, 17))
    whole = metrics.crps_samples(draws, y)
    monkeypatch.setattr(metrics, "_BLOCK", 40)
    np.testing.assert_allclose(metrics.crps_samples(draws, y), whole, rtol=1e-12)


def test_crps_of_samples_keeps_precision_far_from_zero() -> None:
    draws = (4096.0 + np.arange(8) / 1024).astype(np.float32)  # exact in float32
    far = metrics.crps_samples(draws, np.float64(4096.0))
    assert far == pytest.approx(metrics.crps_samples(np.arange(8) / 1024, np.float64(0.0)), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (5, 4)])
def test_crps_of_samples_refuses_one_draw_and_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two draws"):
        metrics.crps_samples(np.zeros(shape), np.zeros(3))


def test_crps_of_samples_meets_the_closed_form() -> None:
    rng = np.random.default_rng(6)
    y = np.linspace(-3, 3, 7)
    draws = rng.normal(0.4, 1.3, size=(60, 500, 1)) + np.zeros(7)
    estimates = np.array([metrics.crps_samples(draws[:, i], y) for i in range(500)])
    error = estimates.std(axis=0) / np.sqrt(500)
    assert (np.abs(estimates.mean(axis=0) - metrics.crps_normal(0.4, 1.3, y)) < 4 * error).all()


@pytest.mark.parametrize(("mean", "sd", "y"), [(0.0, 1.0, 0.0), (1.0, 0.3, 2.0), (-2.0, 4.0, 5.0)])
def test_crps_of_a_normal_is_the_integral_over_thresholds(mean: float, sd: float, y: float) -> None:
    def gap(t: float) -> float:
        return float((norm.cdf(t, mean, sd) - (t >= y)) ** 2)

    integral = quad(gap, -60, y)[0] + quad(gap, y, 60)[0]
    assert metrics.crps_normal(mean, sd, y) == pytest.approx(integral, abs=1e-6)


def test_crps_of_a_constant_is_the_absolute_error() -> None:
    y = np.array([0.0, 1.5])
    np.testing.assert_allclose(metrics.crps_normal([1.0, 1.0], 0.0, y), [1.0, 0.5])
    np.testing.assert_allclose(metrics.crps_samples(np.ones((6, 2)), y), [1.0, 0.5])


def test_a_collapsed_sampler_does_not_win() -> None:
    rng = np.random.default_rng(7)
    y = rng.normal(size=4000)
    honest = metrics.crps_samples(rng.normal(size=(50, 4000)), y).mean()
    collapsed = metrics.crps_samples(0.05 * rng.normal(size=(50, 4000)), y).mean()
    assert honest < 0.8 * collapsed


def test_coverage_by_hand_with_ties_at_the_ends() -> None:
    draws = np.arange(11.0)[:, None] + np.zeros(4)  # 80 % interval: 1 to 9
    inside = metrics.covered_draws(draws, np.array([1.0, 0.99, 9.0, 9.01]), [0.8])
    assert inside.tolist() == [[True, False, True, False]]
    constant = metrics.covered_draws(np.ones((5, 2)), np.array([1.0, 1.1]))
    assert constant[:, 0].all() and not constant[:, 1].any()


def test_coverage_of_calibrated_predictors() -> None:
    rng = np.random.default_rng(8)
    y, count = rng.normal(size=20_000), 40
    levels = np.array(metrics.LEVELS)
    normal = metrics.covered_normal(0.0, 1.0, y).mean(axis=1)
    np.testing.assert_allclose(normal, levels, atol=0.01)
    sampled = metrics.covered_draws(rng.uniform(size=(count, 20_000)), norm.cdf(y)).mean(axis=1)
    np.testing.assert_allclose(sampled, levels * (count - 1) / (count + 1), atol=0.01)
    narrow = metrics.covered_normal(0.0, 0.5, y, [0.9]).mean()
    assert narrow == pytest.approx(2 * norm.cdf(0.5 * norm.ppf(0.95)) - 1, abs=0.01)


def test_coverage_of_a_normal_without_width() -> None:
    assert metrics.covered_normal(np.zeros(2), np.zeros(2), [0.0, 0.1], [0.5]).tolist() == [[True, False]]


@pytest.mark.parametrize("cells", [2, 7, 40])
def test_floor_from_halves_is_what_replicates_and_the_truth_score(make_summary, cells: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(9)
    conditions, genes = 150, 300
    control = np.zeros(genes)
    mu = rng.normal(size=(conditions, genes))
    x, again = mu[:, None] + rng.normal(size=(2, conditions, cells, genes)) * 2.0
    cut = cells // 2
    summary = make_summary(
        {f"t{i:03d}": m for i, m in enumerate(x.mean(axis=1))},
        n_cells=cells,
        halves=np.stack([x[:, :cut].mean(axis=1), x[:, cut:].mean(axis=1)]),
    )
    floor = metrics.half_replicate_floor(summary, control)
    measured, replicate = x.mean(axis=1), again.mean(axis=1)
    assert floor.perfect_l2.mean() == pytest.approx(metrics.l2(mu, measured).mean(), rel=0.02)
    assert floor.replicate_l2.mean() == pytest.approx(metrics.l2(replicate, measured).mean(), rel=0.02)
    expected = metrics.delta_pearson(mu, measured, control)[0].mean()
    assert floor.perfect_delta_pearson.mean() == pytest.approx(expected, abs=0.04)
    expected = metrics.delta_pearson(replicate, measured, control)[0].mean()
    assert floor.replicate_delta_pearson.mean() == pytest.approx(expected, abs=0.04)


def test_floor_of_one_cell_is_unknown(make_summary) -> None:  # type: ignore[no-untyped-def]
    halves = np.array([[[np.nan, np.nan], [1.0, 0.0]], [[np.nan, np.nan], [1.0, 0.0]]])
    summary = make_summary({"A": [1.0, 2.0], "B": [1.0, 0.0]}, n_cells=[1, 3], halves=halves)
    floor = metrics.half_replicate_floor(summary, np.zeros(2))
    assert np.isnan(floor.perfect_l2[0]) and np.isnan(floor.replicate_delta_pearson[0])
    assert floor.perfect_l2[1] == 0.0 and floor.replicate_delta_pearson[1] == pytest.approx(1.0)
