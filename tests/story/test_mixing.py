"""The mixing of latents and its inverse."""

from __future__ import annotations

import pytest
import torch

from pvae_pyro.errors import InputError
from pvae_pyro.story.mixing import LeakyMixing, Mixing


@pytest.fixture
def mixing() -> Mixing:
    torch.manual_seed(0)
    built = LeakyMixing(bend=0.5).build(5).double()
    with torch.no_grad():
        for values in (*built.shift, built.log_scale, built.centre):
            values.normal_()
    return built


def test_unmixing_is_the_inverse_and_its_determinant_is_right(mixing: Mixing) -> None:
    z = torch.randn(6, 5, dtype=torch.double)
    y = mixing(z)
    back, log_det = mixing.unmix(y)
    assert torch.allclose(back, z)
    for row, value in zip(y, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: mixing.unmix(one)[0], row)
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], value)


def test_a_narrow_bend_is_a_leaky_relu() -> None:
    torch.manual_seed(0)
    mixing = LeakyMixing(layers=1, bend=1e-4).build(3)
    z = torch.tensor([[1.0, -1.0, 2.0]])
    leaky = torch.nn.functional.leaky_relu(z, 0.2)
    assert torch.allclose(mixing(z), leaky @ torch.linalg.inv(mixing.linear[0]), atol=1e-3)


def test_a_wide_bend_begins_at_the_rotation_asked_for() -> None:
    torch.manual_seed(0)
    mixing = LeakyMixing(bend=1e3).build(4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    y = torch.randn(200, 4)
    mixing.turn_to(rotation, y)
    z, _ = mixing.unmix(y)
    assert torch.allclose(z - z.mean(0), (y - y.mean(0)) @ rotation, atol=1e-2)


def test_latents_can_be_standardised_and_reordered(mixing: Mixing) -> None:
    y = torch.randn(300, 5, dtype=torch.double)
    first, _ = mixing.unmix(y)
    mixing.reorder(torch.tensor([3, 0, 1, 2, 4]))
    z, _ = mixing.unmix(y)
    assert torch.allclose(z, first[:, [3, 0, 1, 2, 4]])
    mixing.standardise(z)
    z, _ = mixing.unmix(y)
    assert torch.allclose(z.mean(0), torch.zeros(5, dtype=torch.double), atol=1e-9)
    assert torch.allclose(z.std(0), torch.ones(5, dtype=torch.double))


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"slope": 0.0}, {"slope": 1.0}, {"bend": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LeakyMixing(**wrong)  # type: ignore[arg-type]
