"""Programs: names, sizes and signs follow from effects and loadings, whatever the numbers, signs and units of latents."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Ensemble
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.inference.matching import match_latents, match_rows
from pvae_pyro.inference.programs import NO_EFFECT, Programs
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.story import Gaussian, NormalEffects, PerturbedVAE


@cache
def fitted(gates: bool = True) -> Fit:
    world = simulate("linear-gaussian", seed=1, targets=8, doubles=0, controls=60, cells_per_condition=12, genes=30)
    model = PerturbedVAE(responsive=4, background=2, hidden=0, likelihood=Gaussian(link="identity"))
    model = model if gates else model.replace(effects=NormalEffects())
    settings = FitSettings(epochs=0, validation=0.0)
    one = fit(model, Screen.from_anndata(world.adata, "condition"), settings=settings, device="cpu", progress=False)
    state = {name: value.clone() for name, value in one.trained[0].state.items()}
    state["guide.family.log_scale.effects"] -= 20  # a sure posterior, so that a few draws are its mean
    if gates:
        state["guide.family.logits.gates"] = 20 * torch.sign(state["guide.family.logits.gates"] + 0.1)
    return replace(one, trained=(replace(one.trained[0], state=state),))


def turned(one: Fit, order: list[int], factor: list[float]) -> Fit:
    """The same fit with its latents in another order, and latent k in units of 1 / factor[k]: the same model of the data."""
    run, f = one.trained[0], torch.tensor(factor)
    state = {name: value.clone() for name, value in run.state.items()}
    state["story.decoder.responsive"] = (state["story.decoder.responsive"] / f[:, None])[order]
    for name in ("loc.effects", "log_scale.effects", "logits.gates"):
        state[f"guide.family.{name}"] = state[f"guide.family.{name}"][:, order]
    state["guide.family.loc.effects"] *= f[order]
    state["guide.family.log_scale.effects"] += f[order].abs().log()
    state["story.unit"] = (state["story.unit"] / f.abs())[order]
    return replace(one, trained=(replace(run, state=state),))


def test_effect_times_loading_is_what_the_decoder_does_to_a_target() -> None:
    """Turned, rescaled and back: the sum over programs is the shift of the target in gene sds, from the parameters themselves."""
    one = fitted(gates=False)
    programs = Programs.of(one, draws=2)
    story, guide = one.modules()
    w = guide.central_values()["effects"].detach()
    expected = (w @ story.decoder.responsive / story.spread).detach().numpy()
    np.testing.assert_allclose(programs.effects @ programs.loadings, expected, atol=1e-4 * np.abs(expected).max())
    assert (programs.inclusion == 1).all()


def test_order_sign_and_unit_of_latents_do_not_matter() -> None:
    one, order = fitted(), [2, 0, 3, 1]
    other = turned(one, order, [1.0, -2.0, 0.5, -1.0])
    a, b = Programs.of(one, draws=2), Programs.of(other, draws=2)
    np.testing.assert_allclose(b.loadings, a.loadings[order], rtol=1e-4)
    np.testing.assert_allclose(b.inclusion, a.inclusion[:, order], rtol=1e-5)
    np.testing.assert_allclose(b.effects, a.effects[:, order], atol=1e-4 * np.abs(a.effects).max())
    assert 0 < np.mean(np.abs(a.effects) < NO_EFFECT) < 1  # some gates are shut
    matched = match_latents(one, other)
    assert matched.partner.tolist() == [order.index(k) for k in range(4)]
    np.testing.assert_allclose(matched.cosine, 1, atol=1e-5)
    assert matched.sign.tolist() == [1.0, -1.0, 1.0, -1.0]


def test_table_names_what_is_strongest() -> None:
    effects = np.array([[3.0, 0.0], [-0.1, 0.5], [2.0, -4.0]])
    loadings = np.array([[0.2, -0.5, 0.0, 0.1], [-0.3, -0.2, -0.1, -0.4]])
    made = Programs(("A", "B", "C"), np.array(["w", "x", "y", "z"]), effects, np.full((3, 2), 0.25), loadings)
    table = made.table(top=2).set_index("latent")
    assert table.loc[0, "targets"] == "A +3.0, C +2.0" and table.loc[1, "targets"] == "C -4.0, B +0.5"
    assert table.loc[0, "raised"] == "w, z" and table.loc[0, "lowered"] == "x"
    assert table.loc[1, "raised"] == "" and table.loc[1, "lowered"] == "z, w"
    np.testing.assert_allclose(table["size"], [np.sqrt(13.01 / 3), np.sqrt(16.25 / 3)])
    assert table["share"].sum() == pytest.approx(1) and (table["inclusion"] == 0.25).all()


def test_every_program_is_turned_towards_its_strongest_target() -> None:
    programs = Programs.of(fitted(), draws=50)
    largest = programs.effects[np.abs(programs.effects).argmax(0), np.arange(4)]
    assert (largest[programs.size > NO_EFFECT] > 0).all()
    dead = programs.loadings[programs.size <= NO_EFFECT]
    assert len(dead) and (dead.max(1) > -dead.min(1)).all()


def test_ensembles_have_a_block_for_each_member() -> None:
    one = fitted()
    members = (one.trained[0], turned(one, [1, 0, 2, 3], [1.0] * 4).trained[0])
    both = replace(one, guide=Ensemble(n=2), trained=members)
    table = both.programs_table(draws=20)
    assert table["member"].tolist() == [0] * 4 + [1] * 4
    first = table[table["member"] == 0].drop(columns="member")
    pd.testing.assert_frame_equal(first, one.programs_table(draws=20))
    with pytest.raises(InputError, match="take one of fit.members"):
        Programs.of(both)


def test_matching_leaves_out_what_has_no_partner() -> None:
    rows = np.eye(3)
    matched = match_rows(rows, -2 * rows[[2, 0]])
    assert matched.partner.tolist() == [1, -1, 0]
    assert matched.cosine.tolist() == [1.0, 0.0, 1.0] and matched.sign.tolist() == [-1.0, 1.0, -1.0]
