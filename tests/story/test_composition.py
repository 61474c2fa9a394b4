"""How effects combine: exact values, symmetries, limits, and the width of the interaction by loops."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor

from pvae_pyro.errors import InputError
from pvae_pyro.story import Additive, Interaction, PerturbedVAE, Saturating, Story
from pvae_pyro.story.composition import is_combination

DESIGN = torch.tensor(  # control, singles (one at half dose), pairs (one with doses), three targets
    [[0, 0, 0], [1, 0, 0], [0, 0.5, 0], [0, 0, 1], [1, 1, 0], [0.5, 0, 2], [1, 1, 1]], dtype=torch.float64
)
SINGLE = (DESIGN != 0).sum(1) < 2


def effects(seed: int = 0, latents: int = 4) -> Tensor:
    return torch.randn(3, latents, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def saturate(w: Tensor, design: Tensor = DESIGN, scale: float = 1.0, capacity: float = 1.5, unit: float = 0.7) -> Tensor:
    values = {"scale": w.new_tensor(scale), "capacity": w.new_tensor(capacity)}
    return Saturating().compose(values, design, w, w.new_full((w.shape[1],), unit))


def test_additive_is_the_weighted_sum() -> None:
    w = effects()
    found = Additive().compose({"scale": torch.tensor(1.0, dtype=torch.float64)}, DESIGN, w, torch.ones(4))
    expected = torch.stack([0 * w[0], w[0], 0.5 * w[1], w[2], w[0] + w[1], 0.5 * w[0] + 2 * w[2], w[0] + w[1] + w[2]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_additive_scale_touches_combinations_only() -> None:
    w, k = effects(), torch.tensor(0.8, dtype=torch.float64)
    found = Additive(scale=0.8).compose({"scale": k}, DESIGN, w, torch.ones(4))
    factor = torch.where(SINGLE, 1.0, 0.8).double()
    torch.testing.assert_close(found, factor.unsqueeze(1) * (DESIGN @ w))


def test_a_combination_has_two_targets_or_more() -> None:
    assert torch.equal(is_combination(DESIGN), ~SINGLE)


def test_saturating_on_a_pair_worked_out_by_hand() -> None:
    w = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    design = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    # lengths in control sds: 2 * 5 and 2 * 2; 1 + 10 * 4 / 5^2 = 2.6; times the scale 0.9
    found = saturate(w, design, scale=0.9, capacity=5.0, unit=2.0)
    expected = 0.9 / math.sqrt(2.6) * torch.tensor([[3.0, 6.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_two_effects_of_the_capacity_add_to_their_sum_over_root_two() -> None:
    w = torch.tensor([[1.5, 0.0], [0.0, 1.5]], dtype=torch.float64)
    design = torch.ones(1, 2, dtype=torch.float64)
    found = saturate(w, design, capacity=3.0, unit=2.0)
    torch.testing.assert_close(found, torch.full((1, 2), 1.5 / math.sqrt(2), dtype=torch.float64))


def test_saturating_three_targets_by_loops_with_a_unit_of_each_latent() -> None:
    w, unit = effects(1), torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    lengths = [math.sqrt(sum(float(unit[k] * row[k]) ** 2 for k in range(4))) for row in w]
    pairs = sum(lengths[p] * lengths[q] for p in range(3) for q in range(p + 1, 3))
    values = {"scale": w.new_tensor(0.9), "capacity": w.new_tensor(1.5)}
    expected = 0.9 * (w[0] + w[1] + w[2]) / math.sqrt(1 + pairs / 1.5**2)
    torch.testing.assert_close(Saturating().compose(values, DESIGN, w, unit)[-1], expected)


def test_saturating_is_additive_for_small_effects_and_leaves_singles_alone() -> None:
    w = effects(2)
    torch.testing.assert_close(saturate(w, scale=0.6)[SINGLE], (DESIGN @ w)[SINGLE], rtol=0, atol=0)
    for size, tolerance in ((1e-2, 1e-3), (1e-4, 1e-7)):  # the deviation is of second order
        torch.testing.assert_close(saturate(size * w), DESIGN @ (size * w), rtol=tolerance, atol=0)
    assert not torch.allclose(saturate(w)[~SINGLE], (DESIGN @ w)[~SINGLE], rtol=0.05)


def test_saturating_is_symmetric_in_targets() -> None:
    w, order = effects(3), torch.tensor([2, 0, 1])
    torch.testing.assert_close(saturate(w[order], DESIGN[:, order]), saturate(w))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 20), st.integers(0, 100))
def test_saturating_keeps_its_form_under_changes_of_unit(factor: float, seed: int) -> None:
    w = effects(seed)
    # effects and capacity in another unit: the composed effect is in that unit too
    torch.testing.assert_close(saturate(factor * w, capacity=1.5 * factor), factor * saturate(w))
    # latents in another unit, their sds told: the factor does not change
    torch.testing.assert_close(saturate(factor * w, unit=0.7 / factor), factor * saturate(w))
    # dose and effect enter as a product only
    dose = torch.tensor([factor, 1.0, 1 / factor], dtype=torch.float64)
    torch.testing.assert_close(saturate(dose.unsqueeze(1) * w, DESIGN), saturate(w, DESIGN * dose))
    # the factor is the same for every latent, below one, and falls with the size of the effects
    sums = DESIGN @ w
    ratio = (saturate(w) / sums)[~SINGLE]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    larger = (saturate(2 * w) / (2 * sums))[~SINGLE]
    assert (ratio < 1).all() and (larger < ratio).all()


def test_sites_of_the_composition() -> None:
    like = torch.ones(2)

    def sites(part: Additive | Saturating) -> dict[str, float]:
        trace = poutine.trace(part.sample).get_trace(None, like)
        return {n: float(s["fn"].base_dist.scale) for n, s in trace.nodes.items() if s["type"] == "sample"}

    assert sites(Additive()) == {}
    assert sites(Additive(scale_spread=0.2)) == pytest.approx({"composition_scale": 0.2})
    assert sites(Saturating(scale_spread=0.1, capacity_spread=0.3)) == pytest.approx({"composition_scale": 0.1, "capacity": 0.3})
    assert sites(Saturating(scale_spread=0, capacity_spread=0.5)) == pytest.approx({"capacity": 0.5})
    assert float(Additive(scale=0.8).sample(None, like)["scale"]) == pytest.approx(0.8)
    law = poutine.trace(Saturating(capacity=3.5).sample).get_trace(None, like).nodes["capacity"]["fn"]
    assert isinstance(law, dist.LogNormal) and float(law.base_dist.loc) == pytest.approx(math.log(3.5))


def test_interaction_width_by_loops() -> None:
    w, part = effects(4), Interaction(growth=0.6)
    kappa = torch.tensor([0.2, 0.5, 1.0, 0.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.3, 2.0, 1.0], dtype=torch.float64)
    found = part.latent_width(kappa, scale, DESIGN, w)
    for d in range(len(DESIGN)):
        for k in range(4):
            square = scale[k] ** 2 + 0.6 * sum((DESIGN[d, p] * w[p, k]) ** 2 for p in range(3))
            assert float(found[d, k]) == pytest.approx(float(kappa[k]) * math.sqrt(square), rel=1e-12)


def test_only_combinations_interact_in_the_trace() -> None:
    design = DESIGN.float()
    model = PerturbedVAE(composition=Additive(), interaction=Interaction(outside=0.07), responsive=4, background=2)
    story = Story(model, design, 10, 1, 5, 4)
    pyro.set_rng_seed(0)
    trace = poutine.trace(story.globals).get_trace()
    g, eta = trace.nodes["_RETURN"]["value"], trace.nodes["interaction"]["value"]
    combined = ~SINGLE
    torch.testing.assert_close(g.shift[SINGLE], (design @ g.effects)[SINGLE], rtol=0, atol=0)
    stretch = trace.nodes["stretch"]["value"].unsqueeze(1)
    torch.testing.assert_close(g.shift[combined], (design @ g.effects)[combined] * (1 + stretch) + eta)
    assert (eta != 0).all() and not g.residual[SINGLE].any()
    torch.testing.assert_close(g.residual[combined], trace.nodes["residual"]["value"])
    surprise = trace.nodes["surprise"]["value"].unsqueeze(1)
    width = story.model.interaction.latent_width(g.kappa, story.typical, design, g.effects)[combined]
    torch.testing.assert_close(trace.nodes["interaction"]["fn"].base_dist.scale, width * surprise)
    sd = 0.07 * story.spread * surprise
    torch.testing.assert_close(trace.nodes["residual"]["fn"].base_dist.scale, sd.expand(3, 5))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(Additive, {"scale": 0.0}), (Additive, {"scale_spread": -1.0}), (Saturating, {"capacity": 0.0}),
     (Saturating, {"capacity_spread": -0.1}), (Interaction, {"width": -0.1}), (Interaction, {"stretch": -0.1}),
     (Interaction, {"outside": -0.1})],
)  # fmt: skip
def test_impossible_settings_are_refused(kind: type, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        kind(**wrong)


def test_separate_leaves_singles_as_they_are_and_gives_combinations_nothing_of_their_targets() -> None:
    from pvae_pyro.story.composition import Separate

    design, effects = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 1.0], [1.0, 2.0]]), torch.tensor([[2.0, -4.0], [1.0, 3.0]])
    made = Separate().compose({}, design, effects, torch.ones(2))
    assert made.tolist() == [[0.0, 0.0], [1.0, -2.0], [1.0, 3.0], [0.0, 0.0]]
