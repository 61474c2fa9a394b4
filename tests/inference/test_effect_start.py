"""A prior that nobody registered begins at the closed-form shifts, with their sampling sd."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pvae_pyro.guides import Amortized, AmortizedGuide
from pvae_pyro.guides.sites import read_sites
from pvae_pyro.inference import FitSettings, fit
from pvae_pyro.inference.effect_start import NEAR, start_effects
from pvae_pyro.screen import Screen
from pvae_pyro.story import Horseshoe, LaplaceEffects, NormalEffects, PerturbedVAE, SpikeSlab, Story
from pvae_pyro.story.plates import Plates

TARGETS, LATENTS = 12, 5


class StudentT:
    """One site that is w itself, without a method `start`."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        with plates.targets, plates.latents:
            return pyro.sample("student", dist.StudentT(3.0, torch.zeros_like(scale), scale))


class Scaled:
    """A product with a heavy-tailed scale of each effect and one of each latent, whose means are infinite."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        with plates.latents:
            tau = pyro.sample("tau", dist.HalfCauchy(scale))
        with plates.targets, plates.latents:
            lam = pyro.sample("lam", dist.InverseGamma(torch.ones_like(scale), 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(scale), 1.0))
        return tau * lam.sqrt() * z


class Gated:
    """Gates of its own name and size."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        with plates.targets, plates.latents:
            s = pyro.sample("on", dist.Bernoulli(torch.full_like(scale, 0.3)))
            e = pyro.sample("size", dist.Normal(torch.zeros_like(scale), scale))
        return s * e


class Vectors:
    """Correlated latents: one vector of each target."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        k = len(scale)
        covariance = scale * (0.5 * torch.eye(k) + 0.5) * scale.unsqueeze(1)
        with plates.targets:
            return pyro.sample("vectors", dist.MultivariateNormal(torch.zeros_like(scale), covariance)).squeeze(-2)


class Factors:
    """Low rank without any plate: no site belongs to one target."""

    def sample(self, plates: Plates, scale: Tensor) -> Tensor:
        a = pyro.sample("a", dist.Normal(torch.zeros(TARGETS, LATENTS), 1.0).to_event(2))
        b = pyro.sample("b", dist.Normal(torch.zeros(LATENTS, LATENTS), 1.0).to_event(2))
        return a @ b * scale


@cache
def started(part: Any, units: float = 1.0) -> tuple[AmortizedGuide, Tensor, Tensor]:
    """A guide after the start, the shifts and their sds; the first target does nothing, some effects are large."""
    g = torch.Generator().manual_seed(0)
    scale = units * (0.3 + torch.rand(LATENTS, generator=g))
    size = torch.where(torch.rand(TARGETS, LATENTS, generator=g) < 0.4, 3.0, 0.05)
    w = scale * size * torch.randn(TARGETS, LATENTS, generator=g)
    sd = units * (0.05 + 0.2 * torch.rand(TARGETS, LATENTS, generator=g))
    w[0] = 0
    design = torch.cat([torch.zeros(1, TARGETS), torch.eye(TARGETS)])
    story = Story(PerturbedVAE(effects=part, responsive=LATENTS, background=2), design, 1000, 1, 6, LATENTS)
    with torch.no_grad():
        story.effect_scale.copy_(scale)
        guide = Amortized().build(story)
        start_effects(story, guide.family, w, sd)
    return guide, w, sd


STUDENT, SCALED, GATED, VECTORS, FACTORS = StudentT(), Scaled(), Gated(), Vectors(), Factors()
NORMAL, LAPLACE, HORSESHOE = NormalEffects(), LaplaceEffects(), Horseshoe()


def name_of(part: Any) -> str:
    return type(part).__name__ if not isinstance(part, float) else str(part)


@torch.no_grad()
def effects(guide: AmortizedGuide, draws: int = 0) -> Tensor:
    """w at the centre of the guide, or draws of it (draws, targets, latents)."""
    if not draws:
        return guide.shared(guide.family.centre())["effects"]
    return torch.stack([guide.shared(guide.family.sample())["effects"] for _ in range(draws)])


@pytest.mark.parametrize(
    ("part", "units"),
    [*((part, 1.0) for part in (STUDENT, SCALED, GATED, VECTORS, FACTORS, NORMAL, LAPLACE, HORSESHOE)),
     *((part, 40.0) for part in (STUDENT, GATED, VECTORS))], ids=name_of,
)  # fmt: skip
def test_the_centre_makes_the_shifts_whatever_the_prior_and_the_unit(part: Any, units: float) -> None:
    guide, w, sd = started(part, units)
    assert ((effects(guide) - w) / sd).abs().max() < NEAR
    assert all(torch.isfinite(p).all() for p in guide.parameters())


@pytest.mark.parametrize("part", [STUDENT, NORMAL, LAPLACE], ids=name_of)
def test_a_prior_of_one_site_is_placed_exactly_with_the_sampling_sd(part: Any) -> None:
    guide, w, sd = started(part)
    name = "student" if part is STUDENT else "effects"
    assert torch.equal(guide.family.loc[name].detach(), w)
    torch.testing.assert_close(guide.family.log_scale[name].detach().exp(), sd)
    if name == "effects":  # the size of effects is not in one shift more than in the prior
        torch.testing.assert_close(guide.family.log_scale["effect_scale"].detach().exp(), torch.full((LATENTS,), 0.05))


@pytest.mark.parametrize("part", [SCALED, VECTORS, HORSESHOE], ids=name_of)
def test_draws_of_the_start_spread_as_the_shifts_do(part: Any) -> None:
    guide, w, sd = started(part)
    drawn = effects(guide, 400)
    ratio = drawn.std(0) / sd
    # the delta method takes a product for linear, and shared scales move large effects of one latent together
    assert 0.75 < float(ratio.median()) < 1.25
    low, high = ratio[w.abs() > sd].quantile(torch.tensor([0.1, 0.9])).tolist()
    assert low > 0.5 and high < 2
    assert ((drawn.mean(0) - w).abs() < 0.6 * sd).float().mean() > 0.95


def test_sites_that_effects_share_stay_at_the_centre_of_the_prior() -> None:
    guide, _, _ = started(SCALED)
    torch.testing.assert_close(guide.family.centre()["tau"].detach(), guide.story.effect_scale)  # the median of HalfCauchy
    gated, w, _ = started(GATED)
    on = torch.sigmoid(gated.family.logits["on"].detach())
    assert float(on[w.abs() > 1].mean()) > 0.6 and on.min() > 0.01


def test_a_part_that_knows_its_start_is_asked() -> None:
    class Knowing(StudentT):
        def start(self, w: Tensor, sd: Tensor, scale: Tensor) -> tuple[dict[str, Any], Tensor]:
            return {"student": (w + 1, 2 * sd)}, 3 * scale

    guide, w, sd = started(Knowing())
    torch.testing.assert_close(effects(guide), w + 1)
    torch.testing.assert_close(guide.family.log_scale["student"].detach().exp(), 2 * sd)
    torch.testing.assert_close(guide.story.effect_scale, 3 * started(STUDENT)[0].story.effect_scale)
    assert hasattr(SpikeSlab, "start")


@pytest.mark.parametrize(
    ("law", "expected"),
    [(dist.HalfCauchy(torch.tensor(3.0)), 3.0), (dist.Cauchy(torch.tensor(1.5), 2.0), 1.5),
     (dist.StudentT(torch.tensor(1.0), 2.0, 1.0), 2.0), (dist.InverseGamma(torch.tensor(1.0), 4.0), 2.0),
     (dist.HalfCauchy(torch.tensor([3.0, 1.0])).to_event(1), [3.0, 1.0]), (dist.Gamma(torch.tensor(2.0), 4.0), 0.5)],
)  # fmt: skip
def test_a_site_without_a_mean_begins_at_its_median_or_mode(law: Any, expected: float | list[float]) -> None:
    (site,) = read_sites(lambda: pyro.sample("x", law))
    torch.testing.assert_close(site.centre, torch.tensor(expected))


def test_a_fit_with_an_unregistered_prior_predicts_what_it_was_trained_on(screen: Callable[..., Screen]) -> None:
    data = screen(doubles=0)
    means = {}
    for part in (StudentT(), NormalEffects()):
        found = fit(PerturbedVAE(effects=part, background=3, hidden=0), data, settings=FitSettings(epochs=0), progress=False)
        means[type(part)] = found.predict(list(data.targets), draws=50).draws("latent_mean").mean(0)
        assert "gates" not in {finding.topic for finding in found.diagnose()}
        assert (found.effects_table(draws=5)["inclusion"] == 1).all()
    np.testing.assert_allclose(*means.values(), atol=0.05)
    control = data.expression[data.condition == 0].mean(0)
    assert np.abs(means[StudentT] - np.asarray(control)).max() > 0.5
