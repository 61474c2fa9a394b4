"""The identifiability experiment: scores of known latents, worlds of its arms, and that its README is its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ortho_group

import pvae_pyro as pv
from experiments.filling import fill
from experiments.identifiability import arms, publish
from pvae_pyro.inference.unmixing import Projection, UnmixSettings, _Run
from pvae_pyro.simulate.identifiability import Identifiable, identifiable
from pvae_pyro.story.mixing import LeakyMixing

HERE = Path(arms.__file__).parent


@pytest.fixture(scope="module")
def truth() -> Identifiable:
    return identifiable(seed=0)


def scored(truth: Identifiable, z_r: np.ndarray) -> dict[str, float]:
    """Scores of these responsive latents beside the true background; all cells, of which the test cells count."""
    test = slice(truth.world.train, None)
    rows = arms.scores(truth, truth.z_background[test], z_r[test], truth.condition[test], seed=0)
    return {metric: value for _, metric, value in rows}


def test_the_truth_scores_one(truth: Identifiable) -> None:
    order, scale = np.array([2, 0, 3, 1]), np.array([-3.0, 0.5, 1.0, 7.0])
    found = scored(truth, truth.z_responsive[:, order] * scale)
    for metric in ("mcc", "r2_responsive", "r2_background"):
        assert found[metric] == pytest.approx(1, abs=1e-9)
    assert found["mcc_floor"] < 0.85


def test_a_rotation_finds_the_block_and_not_the_latents(truth: Identifiable) -> None:
    """Nothing but the floor of the MCC tells a rotation from luck: it is made of rotations."""
    turned = [scored(truth, truth.z_responsive @ ortho_group.rvs(4, random_state=seed)) for seed in range(20)]
    assert all(one["r2_responsive"] == pytest.approx(1, abs=1e-9) for one in turned)
    assert np.median([one["mcc"] for one in turned]) == pytest.approx(turned[0]["mcc_floor"], abs=0.05)


def test_worlds_differ_in_what_their_names_say() -> None:
    def world(name: str) -> Identifiable:
        return identifiable(arms.arms()[name].args[0].world, seed=1)  # type: ignore[attr-defined]

    plain, constant = world("no-edges"), world("fails-no-edges-constant-variance")
    assert not plain.graph.any() and not plain.coupling.any() and not constant.graph.any()
    assert np.ptp(constant.sd, axis=0).max() == 0 and np.ptp(plain.sd, axis=0).min() > 0
    np.testing.assert_array_equal(plain.mean, constant.mean)  # nothing else changes
    # a linear mixing: eleven latents lie in eleven directions, whatever their values
    x = np.asarray(plain.adata.X, dtype=float)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert values[10] > 5 * values[11]


def test_thirty_restarts_begin_with_those_of_the_paper() -> None:
    """So that their ELBO can only be higher, but for the rounds that only the best of them go on to."""
    many, few = (arms.arms()[name].args[1] for name in ("thirty-restarts", "paper"))  # type: ignore[attr-defined]
    assert many.trials[1:] == few.trials[1:] and many.trials[0][1] == few.trials[0][1]
    assert (many.trials[0][0], few.trials[0][0]) == (30, 10)


def test_the_readme_holds_the_tables_of_the_results(tmp_path: Path) -> None:
    text, copy = (HERE / "README.md").read_text(encoding="utf-8"), tmp_path / "README.md"
    copy.write_text(text, encoding="utf-8")
    fill(copy, "identifiability", publish.tables(pd.read_csv(HERE / "results.csv")))
    assert copy.read_text(encoding="utf-8") == text


def test_without_bends_no_linear_map_of_the_responsive_block_is_preferred(truth: Identifiable) -> None:
    """Every condition has edges of its own, so that the ELBO with globals maximised out is the same for z_r and A z_r + C z_b."""
    train = pv.Screen.from_anndata(truth.adata, "condition", scale="normalised")
    projection = Projection.of(train.expression.toarray().astype(np.float64), 11)
    y = projection(train)
    run = _Run(arms.MODEL, train, y, projection, LeakyMixing(), UnmixSettings(trials=((1, 1),)), 0, None)
    with torch.no_grad():
        z, log_det = run.mixing.unmix(y)
        generator = torch.Generator().manual_seed(0)
        inside, across = torch.randn(4, 4, generator=generator), torch.randn(7, 4, generator=generator)
        other = torch.cat([z[:, :7], z[:, 7:] @ inside + z[:, :7] @ across], 1)
        before, after = run.profile(z, log_det), run.profile(other, log_det + torch.linalg.slogdet(inside)[1])
        mixed = run.profile(torch.cat([z[:, :7] + z[:, 7:] @ across.T, z[:, 7:]], 1), log_det)
    assert float(after) == pytest.approx(float(before), abs=0.02)
    assert float(mixed) < float(before) - 1  # what would make the background follow the perturbation is not free
