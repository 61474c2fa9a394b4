"""Law of total variance: epistemic and aleatoric parts add up to the variance of what would be measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.inference import Fit
from pvae_pyro.prediction import Posterior

FitOf = Callable[..., Fit]
DRAWS = 800


def asked(fit: Fit, n: int) -> Posterior:
    return fit.predict(["T01", "T02+T05"], draws=DRAWS, n_cells=n, seed=4)


@pytest.mark.parametrize("model", ["default", "counts"])
@pytest.mark.parametrize("n", [12, 80])
def test_parts_add_up_to_the_variance_of_measured_pseudobulks(model: str, n: int, fitted: FitOf) -> None:
    posterior = asked(fitted(model), n)
    parts = posterior.variance_parts()
    drawn = posterior.draws().astype(np.float64).var(0, ddof=1)
    # relative Monte Carlo error of a variance from 800 draws is 5 % for normal draws; a few pairs surprise more
    ratio = np.log(drawn / parts.total)
    assert np.abs(ratio).max() < 5 * 0.07 and abs(ratio.mean()) < 0.05
    assert (parts.aleatoric > 0).all() and (parts.epistemic > 0).all()


def test_the_latent_mean_has_no_aleatoric_part_and_cells_have_most(fitted: FitOf) -> None:
    posterior = asked(fitted(), 50)
    latent, bulk, cell = (posterior.variance_parts(kind) for kind in ("latent_mean", "measured_pseudobulk", "new_cell"))
    assert not latent.aleatoric.any()
    np.testing.assert_allclose(latent.epistemic, posterior.draws("latent_mean").var(0, ddof=1), rtol=1e-4)
    np.testing.assert_array_equal(latent.epistemic, cell.epistemic)
    np.testing.assert_allclose(cell.aleatoric, 50 * bulk.aleatoric, rtol=1e-5)
    with pytest.raises(InputError, match="new_cell"):
        posterior.variance_parts("cell")  # type: ignore[arg-type]


def test_total_of_a_new_cell_is_the_variance_of_new_cells(fitted: FitOf) -> None:
    posterior = asked(fitted(), 50)
    cells = posterior.new_cells("T02+T05", 6000, seed=1).astype(np.float64)
    total = posterior.variance_parts("new_cell").total[1]
    error = (((cells - cells.mean(0)) ** 2).var(0) / len(cells)) ** 0.5  # Monte Carlo error of a variance, heavy tails counted
    assert (np.abs(cells.var(0) - total) < 4.5 * error + 0.02 * total).all()
