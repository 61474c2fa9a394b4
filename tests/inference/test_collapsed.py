"""Latents of cells integrated out by algebra, against dense normal densities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pyro import poutine

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Sampled
from pvae_pyro.inference import FitSettings, collapsed, fit
from pvae_pyro.inference.collapsed import CellMoments, check_linear
from pvae_pyro.screen import Screen
from pvae_pyro.story import Gaussian, Mixture, ModulatedGraph, PerturbedVAE, Story

LINEAR = PerturbedVAE(
    responsive=3, background=2, hidden=0, likelihood=Gaussian(link="identity"), coupling=0.5, variance_spread=0.4
)
ScreenOf = Callable[..., Screen]


def test_log_likelihood_is_the_dense_density_of_every_cell(screen: ScreenOf) -> None:
    """Eq. 59 written out cell by cell, with batches, a graph, B and noise that depends on the condition."""
    data = screen("default")
    assert len(data.batches) > 1
    torch.manual_seed(0)
    design = torch.as_tensor(np.asarray(data.design, dtype=np.float32))
    story = Story(LINEAR, design, data.n_cells, len(data.batches), data.n_genes, 3).double().requires_grad_(False)
    story.decoder.intercept.normal_()
    with poutine.block():
        g = story.globals()
    some = np.arange(0, data.n_cells, 3)
    carry = torch.linalg.inv(torch.eye(3).double() - g.graph).T
    total = 0.0
    for row in some:
        c, b = data.condition[row], data.batch[row]
        x = torch.as_tensor(data.expression[[row]].toarray()[0]).double()
        mean = story.decoder.intercept[b] + g.shift[c] @ carry @ story.decoder.responsive + g.residual[c]
        own = carry @ story.decoder.responsive
        background = story.decoder.background + g.coupling @ own
        v = story.noise_variance(g.log_variance, story.design)[c]
        covariance = background.T @ background + own.T @ torch.diag(v) @ own + torch.diag(g.noise.square())
        total += float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(x))
    found = CellMoments.of(data, some, story.decoder.intercept).log_likelihood(story, g)
    assert g.log_variance.abs().max() > 0.1 and g.coupling.abs().max() > 0.1
    np.testing.assert_allclose(float(found), total, rtol=1e-9)


@pytest.mark.parametrize(
    ("swapped", "said"),
    [
        ({"likelihood": Gaussian()}, 'Gaussian(link="identity")'),
        ({"penetrance": Mixture()}, "penetrance = Full()"),
        ({"graph": ModulatedGraph()}, "the same in every condition"),
    ],
)
def test_a_story_whose_latents_do_not_integrate_out_is_refused_before_training(
    screen: ScreenOf, swapped: dict[str, object], said: str
) -> None:
    check_linear(LINEAR)
    with pytest.raises(InputError) as raised:
        fit(LINEAR.replace(**swapped), screen(), guide=Sampled(), settings=FitSettings(epochs=50), progress=False)
    assert said in str(raised.value) and "another guide" in str(raised.value)


def test_a_screen_with_too_many_genes_is_refused_before_training(
    screen: ScreenOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = screen()
    monkeypatch.setattr(collapsed, "MOST_MOMENTS", len(data.conditions) * 30**2)
    with pytest.raises(InputError, match=r"\(30 at most\)"):
        fit(LINEAR, data, guide=Sampled(), settings=FitSettings(epochs=50), progress=False)
