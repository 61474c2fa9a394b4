"""Worlds of the identifiability experiment hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.simulate.identifiability import Environments, identifiable


def test_the_default_is_the_papers_size_and_the_seed_makes_it_again() -> None:
    one, other = identifiable(seed=3), identifiable(seed=3)
    assert one.adata.shape == (3000, 500) and one.held_out.shape == (1000, 500)
    assert one.z_responsive.shape == (4000, 4) and one.z_background.shape == (4000, 7)
    assert len(set(one.adata.obs["condition"])) == 13 and one.adata.X.min() >= 0
    assert np.array_equal(one.adata.X, other.adata.X)
    assert not np.array_equal(one.adata.X, identifiable(seed=4).adata.X)


def test_latents_follow_their_equations() -> None:
    world = identifiable(Environments(genes=30, train=26000, test=26), seed=1)
    for code in (0, 5):
        rows = world.condition == code
        z_r, z_b = world.z_responsive[rows], world.z_background[rows]
        noise = z_r - z_r @ world.graph[code].T - z_b @ world.coupling[code].T
        assert noise.mean(0) == pytest.approx(world.mean[code], abs=0.2)
        assert noise.std(0) == pytest.approx(world.sd[code], rel=0.1)
        assert z_b.mean(0) == pytest.approx(np.zeros(7), abs=0.1)


def test_every_perturbation_cuts_what_leads_to_its_target_and_nothing_else() -> None:
    world = identifiable(seed=0)
    for p in range(1, 13):
        for k in range(4):
            cut = k == (p - 1) % 4
            assert (not world.coupling[p, k].any()) == cut
            assert (not world.graph[p, k].any()) == (cut or k == 0)
    sizes = np.abs(world.graph[world.graph != 0])
    assert sizes.min() >= 0.2 and sizes.max() <= 1


def test_expression_lies_near_as_many_directions_as_there_are_latents() -> None:
    x = np.asarray(identifiable(seed=0).adata.X, dtype=float)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert values[10] > 10 * values[11]


def test_switches_do_what_they_say() -> None:
    assert np.ptp(identifiable(Environments(constant_variance=True)).sd, axis=0).max() == 0
    assert not identifiable(Environments(coupled=False)).coupling.any()
    paired = identifiable(Environments(paired=True))
    rows = np.flatnonzero(paired.partner >= 0)
    assert len(rows) == (paired.condition[:3000] != 0).sum()
    assert np.array_equal(paired.z_background[rows], paired.z_background[paired.partner[rows]])
    assert (paired.condition[paired.partner[rows]] == 0).all()


def test_impossible_worlds_are_refused() -> None:
    with pytest.raises(InputError, match="responsive"):
        Environments(responsive=0)
    with pytest.raises(InputError, match="genes"):
        Environments(genes=10)
    with pytest.raises(InputError, match="negative"):
        identifiable(seed=-1)
