"""Effect priors: their samples follow the density of their docstrings, integrated over all other sites by quadrature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats

from pvae_pyro.errors import InputError
from pvae_pyro.story import PARTS, Horseshoe, LaplaceEffects, NormalEffects, SpikeSlab
from pvae_pyro.story.effects.horseshoe import width
from pvae_pyro.story.plates import Plates

N = 20_000  # independent effects: one target, many latents, since latents share nothing
SPREAD = 0.3
EVERY = {
    "normal": NormalEffects(SPREAD), "laplace": LaplaceEffects(SPREAD),
    "horseshoe": Horseshoe(open_share=0.3, strength=20.0, scale_spread=SPREAD),
    "spike-slab": SpikeSlab(inclusion=0.3, strength=5.0, activity=0.6, activity_strength=2.0, scale_spread=SPREAD),
}  # fmt: skip


def plates(targets: int, latents: int) -> Plates:
    """Without edges, of which many latents would make too many."""
    return Plates(
        pyro.plate("targets", targets, dim=-2), pyro.plate("background", 1, dim=-2), pyro.plate("latents", latents, dim=-1),
        pyro.plate("genes", 1, dim=-1), None,
    )  # fmt: skip


def drawn(part: Any, scale: torch.Tensor, targets: int = 1, seed: int = 0) -> np.ndarray:
    pyro.set_rng_seed(seed)
    return np.asarray(part.sample(plates(targets, len(scale)), scale)).astype(float)


# quadrature nodes with weights that sum to one: log-normal sizes, half-Cauchy local scales (by their quantiles), beta openness
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
SIZES, SIZE_WEIGHTS = np.exp(SPREAD * NODES), WEIGHTS / WEIGHTS.sum()
LEVELS, LEVEL_WEIGHTS = np.polynomial.legendre.leggauss(200)
LOCAL, LOCAL_WEIGHTS = np.tan(np.pi / 4 * (1 + LEVELS)), LEVEL_WEIGHTS / 2
OPEN = stats.beta.ppf((np.arange(20) + 0.5) / 20, 20 * 0.3, 20 * 0.7)


def horseshoe_width(lam: np.ndarray, size: np.ndarray, openness: np.ndarray) -> np.ndarray:
    """The formula of the paper: tau sqrt(c^2 lambda^2 / (c^2 + tau^2 lambda^2))."""
    c = size / np.sqrt(openness)
    tau = c * openness / (1 - openness)
    return tau * np.sqrt(c**2 * lam**2 / (c**2 + tau**2 * lam**2))


def distribution(name: str, x: np.ndarray) -> np.ndarray:
    """P(w <= x) of a part of EVERY for scale 1; for the spike-and-slab given an open gate."""
    if name == "horseshoe":
        sd = horseshoe_width(LOCAL[:, None, None], SIZES[None, :, None], OPEN[None, None, :])
        weight = LOCAL_WEIGHTS[:, None, None] * SIZE_WEIGHTS[None, :, None] / len(OPEN)
        return np.array([(weight * stats.norm.cdf(one / sd)).sum() for one in x])
    law, unit = (stats.laplace, 1 / math.sqrt(2)) if name == "laplace" else (stats.norm, 1.0)
    return (SIZE_WEIGHTS * law.cdf(x[:, None] / (unit * SIZES))).sum(1)


@pytest.mark.parametrize("name", EVERY)
def test_samples_follow_the_density_integrated_over_all_other_sites(name: str) -> None:
    w = drawn(EVERY[name], torch.ones(N)).ravel()
    if name == "spike-slab":
        is_open = w != 0
        # one target: all its gates share a_p, so that only their mean given it is known
        assert is_open.mean() == pytest.approx(0.3 * activity(0), abs=4 * math.sqrt(0.21 / N))
        w = w[is_open]
    grid = np.geomspace(1e-4, 60, 120)
    values = distribution(name, grid)
    assert values[0] < 0.502 and values[-1] > 1 - 1e-4

    def p_value(w: np.ndarray) -> float:  # every prior is symmetric
        return float(stats.kstest(w, lambda x: 0.5 + np.sign(x) * (np.interp(np.abs(x), grid, values) - 0.5)).pvalue)

    assert p_value(w) > 0.001
    assert p_value(1.15 * w) < 0.001  # the test could tell effects that are larger by 15 %


@pytest.mark.parametrize("name", EVERY)
def test_the_size_of_effects_is_the_scale_asked_for(name: str) -> None:
    """E w^2 = scale^2 exp(2 spread^2), times the share of open gates."""
    w = drawn(EVERY[name], torch.full((N,), 2.0), seed=1).ravel()
    expected = 4 * math.exp(2 * SPREAD**2) * (0.3 * activity(1) if name == "spike-slab" else 1.0)
    error = (w**2).std() / math.sqrt(N)
    assert (w**2).mean() == pytest.approx(expected, abs=4 * error)
    assert error < 0.06 * expected
    assert abs(w.mean()) < 4 * w.std() / math.sqrt(N)


def activity(seed: int) -> float:
    """The share a_p of the one target of `drawn` with this seed."""
    pyro.set_rng_seed(seed)
    with pyro.poutine.trace() as trace:
        EVERY["spike-slab"].sample(plates(1, N), torch.ones(N))
    return float(trace.trace.nodes["activity"]["value"])


@pytest.mark.parametrize("name", EVERY)
def test_effects_are_in_the_units_of_the_scale(name: str) -> None:
    scale = torch.tensor([0.1, 1.0, 30.0, 4.0])
    one = drawn(EVERY[name], torch.ones(4), targets=50)
    np.testing.assert_allclose(drawn(EVERY[name], scale, targets=50), one * scale.numpy(), rtol=1e-5)


@pytest.mark.parametrize("openness", [0.02, 0.25, 0.5, 0.9])
def test_openness_is_the_expected_share_of_open_effects(openness: float) -> None:
    """E (tau lambda~ / c)^2 = tau / (tau + c) = openness, so that the sd of effects does not depend on it."""
    def integrand(lam: float) -> float:
        return 2 / np.pi / (1 + lam**2) * float(horseshoe_width(np.array(lam), np.array(1.0), np.array(openness))) ** 2

    total = integrate.quad(integrand, 0, 1)[0] + integrate.quad(lambda u: integrand(1 / u) / u**2, 0, 1)[0]
    assert total == pytest.approx(1.0, rel=1e-6)
    c = 1 / math.sqrt(openness)
    tau = c * openness / (1 - openness)
    assert tau / (tau + c) == pytest.approx(openness)


def test_the_width_of_an_effect_is_the_formula_of_the_paper_even_where_the_tail_is_extreme() -> None:
    lam = torch.tensor([0.0, 1e-6, 0.3, 1.0, 50.0, 1e30])
    size, o = torch.full_like(lam, 1.7), torch.full_like(lam, 0.2)
    expected = horseshoe_width(np.minimum(lam.double().numpy(), 1e12), size.double().numpy(), o.double().numpy())
    np.testing.assert_allclose(width(lam, size, o), expected, rtol=1e-5)
    free = lam.clone().requires_grad_()
    (slope,) = torch.autograd.grad(width(free, size, o).sum(), free)
    assert torch.isfinite(slope).all() and slope[0] > 0 and slope[-1] == 0


def test_a_horseshoe_that_is_all_open_is_normal_and_one_that_is_not_is_sparser() -> None:
    scale = torch.ones(N)
    normal = np.abs(drawn(NormalEffects(SPREAD), scale))
    whole = np.abs(drawn(Horseshoe(open_share=1 - 1e-4, strength=1e4, scale_spread=SPREAD), scale, seed=2))
    assert stats.ks_2samp(whole.ravel(), normal.ravel()).pvalue > 0.001
    medians = [np.median(np.abs(drawn(Horseshoe(share, 50.0, SPREAD), scale))) for share in (0.05, 0.2, 0.5, 0.9)]
    assert np.all(np.diff(medians) > 0.05) and medians[0] < 0.2 * np.median(normal)
    laplace = np.median(np.abs(drawn(LaplaceEffects(SPREAD), scale)))
    assert medians[1] < laplace < np.median(normal) < 1.1 * medians[3]


@pytest.mark.parametrize(
    ("part", "wrong"),
    [(Horseshoe, {"open_share": 0.0}), (Horseshoe, {"open_share": 1.0}), (Horseshoe, {"strength": 0.0}),
     (Horseshoe, {"scale_spread": -1.0}), (LaplaceEffects, {"scale_spread": 0.0}), (NormalEffects, {"scale_spread": 0.0}),
     (SpikeSlab, {"inclusion": 1.5}), (SpikeSlab, {"estimator": "relaxed"})],
)  # fmt: skip
def test_impossible_settings_are_refused(part: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        part(**wrong)


def test_the_names_of_the_configuration() -> None:
    expected = {"spike-slab": SpikeSlab, "horseshoe": Horseshoe, "laplace": LaplaceEffects, "normal": NormalEffects}
    assert PARTS["effects"] == expected
