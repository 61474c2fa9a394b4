"""Cell log density against a model whose density is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from pvae_pyro.evaluation.cell_density import ENOUGH, cell_log_density

pytestmark = pytest.mark.filterwarnings("error")

LOADING, NOISE = np.array([1.0, -0.5, 2.0]), 0.7


def weights(
    rng: np.random.Generator, x: np.ndarray, samples: int, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Joint and proposal of z in x = loading z + noise, z ~ N(0, 1), the proposal's sd ``width`` times the posterior's."""
    precision = 1 + LOADING @ LOADING / NOISE**2
    mean, sd = (x @ LOADING / NOISE**2) / precision, width / np.sqrt(precision)
    z = mean + sd * rng.normal(size=(1, samples, len(x)))
    likelihood = norm.logpdf(x, z[..., None] * LOADING, NOISE).sum(axis=-1)
    return likelihood + norm.logpdf(z), norm.logpdf(z, mean, sd)


def test_density_of_a_linear_gaussian_cell_is_recovered() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) * LOADING + NOISE * rng.normal(size=(200, 3))
    truth = multivariate_normal(np.zeros(3), np.outer(LOADING, LOADING) + NOISE**2 * np.eye(3)).logpdf(x)
    exact, share = cell_log_density(*weights(rng, x, 3, 1.0))
    np.testing.assert_allclose(exact, truth, rtol=1e-10)  # the posterior itself as proposal has no variance
    np.testing.assert_allclose(share, 1.0)
    found, share = cell_log_density(*weights(rng, x, 20 * ENOUGH, 1.5))
    # the weights' relative variance is 1 / share - 1
    error = np.sqrt((1 / share - 1) / (20 * ENOUGH))
    assert (np.abs(found - truth) < 5 * error).all() and (share < 0.95).all()


def test_few_samples_give_a_lower_bound() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 1)) * LOADING + NOISE * rng.normal(size=(2000, 3))
    means = [cell_log_density(*weights(rng, x, k, 2.0))[0].mean() for k in (1, 10, 200)]
    truth = (
        multivariate_normal(np.zeros(3), np.outer(LOADING, LOADING) + NOISE**2 * np.eye(3)).logpdf(x).mean()
    )
    assert means[0] < means[1] < means[2] + 1e-3 and means[2] == pytest.approx(truth, abs=0.01)


def test_draws_of_globals_are_averaged_as_densities() -> None:
    rng = np.random.default_rng(2)
    above, below = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 5, 3))
    found, share = cell_log_density(above, below)
    for i in range(3):
        w = [np.exp(above[s, k, i] - below[s, k, i]) for s in range(4) for k in range(5)]
        assert found[i] == pytest.approx(np.log(sum(w) / 20))
        assert share[i] == pytest.approx(sum(w) ** 2 / sum(one**2 for one in w) / 20)
    far = cell_log_density(above - 1e4, below)[0]
    np.testing.assert_allclose(far, found - 1e4)  # no underflow
    with pytest.raises(ValueError, match="draws, samples, cells"):
        cell_log_density(above, below[:2])
