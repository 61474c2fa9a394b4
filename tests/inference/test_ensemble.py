"""An ensemble is its members: each a fit of its own, mixed in equal parts, on disk and after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from pvae_pyro.errors import InputError
from pvae_pyro.guides import Amortized, Ensemble, LowRank
from pvae_pyro.guides.ensemble import member_seed, restarts
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.inference.restart import resampled
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.prediction.mixture import RecipeMixture
from pvae_pyro.screen import Screen
from pvae_pyro.splits import validation_slice
from pvae_pyro.story import PerturbedVAE
from pvae_pyro.story.model import effect_of

MODEL = PerturbedVAE(background=2, hidden=4)
SETTINGS = FitSettings(epochs=2, batch_size=128, validation=0.1)
ASKED = ("T01+T02", "T03", "control", "T01+T05")
ScreenOf = Callable[..., Screen]


def quick(screen: Screen, guide: Amortized | Ensemble, seed: int = 0, **more: object) -> Fit:
    return fit(MODEL, screen, guide=guide, seed=seed, settings=SETTINGS, device="cpu", progress=False, **more)  # type: ignore[arg-type]


def draws(fitted: Fit, n: int = 7, seed: int = 3, kind: str = "measured_pseudobulk") -> np.ndarray:
    return fitted.predict(list(ASKED), draws=n, n_cells=50, seed=seed).draws(kind)  # type: ignore[arg-type]


def same(one: Fit, other: Fit) -> None:
    """Every member equal bit for bit."""
    for a, b in zip(one.trained, other.trained, strict=True):
        assert a.seed == b.seed and a.state.keys() == b.state.keys()
        assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)
        np.testing.assert_equal(a.history, b.history)
    np.testing.assert_array_equal(draws(one), draws(other))


@pytest.fixture(scope="module")
def data(screen: ScreenOf) -> Screen:
    return screen("default")


@pytest.fixture(scope="module")
def ensemble(data: Screen) -> Fit:
    return quick(data, Ensemble(n=3))


@pytest.fixture(scope="module")
def boot(data: Screen) -> Fit:
    return quick(data, Ensemble(n=2, resample=True))


def test_member_0_is_a_plain_fit_and_the_others_are_not(data: Screen, ensemble: Fit, boot: Fit) -> None:
    plain = quick(data, Amortized())
    assert len(plain.members) == 1 and plain.members[0] is plain
    for several in (ensemble, boot):
        assert several.members[0].guide == Amortized() and several.members[0].seed == 0
        same(several.members[0], plain)
        for other in several.members[1:]:
            assert not torch.equal(other.state["guide.family.loc.effects"], plain.state["guide.family.loc.effects"])
    assert len({one.seed for one in ensemble.trained}) == 3
    assert ensemble.members[2].seed == member_seed(0, 2) != member_seed(1, 1)
    # a member is a fit with its own seed, whoever makes it
    same(ensemble.members[1], quick(data, Amortized(), seed=member_seed(0, 1)))


def test_draws_are_those_of_the_members_in_equal_parts(ensemble: Fit) -> None:
    for n, parts in ((7, (3, 2, 2)), (9, (3, 3, 3)), (2, (1, 1)), (1, (1,))):
        for kind in ("latent_mean", "measured_pseudobulk"):
            own = [draws(ensemble.members[i], s, member_seed(3, i), kind) for i, s in enumerate(parts)]
            np.testing.assert_array_equal(draws(ensemble, n, kind=kind), np.concatenate(own))
    # neither the numbers that members draw by nor the noise of a condition are shared
    mixed = ensemble.predict(["T01+T02"], draws=6, seed=3)
    assert isinstance(mixed.recipe, RecipeMixture) and mixed.n_draws == 6
    one, other = (part.seed for part in mixed.recipe.parts[:2])
    assert one != other


def test_moments_are_those_of_the_law_of_total_variance(ensemble: Fit) -> None:
    n = 40
    posterior = ensemble.predict(list(ASKED), draws=3 * n, seed=1)
    found = posterior.draws("latent_mean").astype(np.float64)
    own = np.stack([
        one.predict(list(ASKED), draws=n, seed=member_seed(1, i)).draws("latent_mean") for i, one in enumerate(ensemble.members)
    ]).astype(np.float64)  # fmt: skip
    means = own.mean(1)
    np.testing.assert_allclose(found.mean(0), means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.var(0), own.var(1).mean(0) + means.var(0), rtol=1e-4, atol=1e-9)
    summary = posterior.summary("latent_mean")
    np.testing.assert_allclose(summary.mean, found.mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.quantile(0.25), np.quantile(found, 0.25, axis=0), rtol=1e-4)


def test_what_is_made_of_draws_is_made_of_all_members(ensemble: Fit) -> None:
    posterior = ensemble.predict(list(ASKED), draws=7, seed=2)
    latent = posterior.draws("latent_mean")
    np.testing.assert_array_equal(posterior.contrast("T01+T02", "T03").draws, latent[:, 0] - latent[:, 1])
    parts = [one.predict(list(ASKED), draws=s, seed=member_seed(2, i)) for i, (one, s) in
             enumerate(zip(ensemble.members, (3, 2, 2), strict=True))]  # fmt: skip
    found = posterior.interaction("T01+T05").draws
    np.testing.assert_array_equal(found, np.concatenate([p.interaction("T01+T05").draws for p in parts]))
    # joint over conditions, in any order and whatever is asked beside
    turned = ensemble.predict(["T04", *ASKED[::-1]], draws=7, seed=2)
    np.testing.assert_array_equal(turned.draws("latent_mean")[:, :0:-1], latent)


def test_new_cells_come_from_every_member(ensemble: Fit) -> None:
    posterior = ensemble.predict(["T03"], draws=7, seed=2)
    generator = torch.Generator().manual_seed(0)
    numbers = np.array([6, 0, 3, 3, 4])
    cells = posterior.recipe.cells(0, numbers, generator)
    assert cells.shape == (5, posterior.active.sum()) and torch.isfinite(cells).all()
    many = 4000
    for number in (2, 3, 6):
        mean = posterior.recipe.cells(0, np.full(many, number), generator).double()
        error = mean.std(0) / many**0.5
        expected = torch.from_numpy(posterior.draws("latent_mean")[number, 0]).double()
        # the cells of draw `number` have that draw's mean, and no other's; 0.02 as for plain fits
        assert ((mean.mean(0) - expected).abs() < 4.5 * error + 0.02).all()
    np.testing.assert_array_equal(posterior.new_cells("T03", 6, seed=1), posterior.new_cells("T03", 6, seed=1))


def test_a_saved_ensemble_is_the_same(ensemble: Fit, boot: Fit, data: Screen, tmp_path: Path) -> None:
    for name, one in (("plain", ensemble), ("boot", boot), ("alone", ensemble.members[1])):
        again = Fit.load(one.save(tmp_path / name))
        assert again.guide == one.guide and again.seed == one.seed and len(again.members) == len(one.members)
        same(again, one)
        same(again.at_start(), one.at_start())
        assert again.effects_table(3).equals(one.effects_table(3))
    single = quick(data, Ensemble(n=1))
    same(Fit.load(single.save(tmp_path / "one")), single)
    same(single, ensemble.members[0])
    (tmp_path / "plain/member-2/state.safetensors").unlink()
    with pytest.raises(InputError, match="state.safetensors in .*member-2"):
        Fit.load(tmp_path / "plain")
    facts = json.loads((tmp_path / "one/fit.json").read_text())
    (tmp_path / "one/fit.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "members"}))
    with pytest.raises(InputError, match="older version"):
        Fit.load(tmp_path / "one")


@pytest.mark.parametrize("member", [0, 1])
def test_an_interrupted_ensemble_goes_on_as_if_nothing_had_happened(
    member: int, data: Screen, ensemble: Fit, boot: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, whole = Trainer.step, boot if member else ensemble
    steps = 0
    an_epoch = -(-whole.trained[0].n_cells // SETTINGS.batch_size)

    def broken(self: Trainer, rows: np.ndarray, progress: float) -> tuple[float, float]:
        nonlocal steps
        steps += 1
        if steps == (2 * member + 1) * an_epoch + 1:  # in the second epoch of this member
            raise KeyboardInterrupt
        return step(self, rows, progress)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        quick(data, whole.guide, checkpoint=tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [f"member-{i}" for i in range(member + 1)]
    monkeypatch.undo()
    trained: list[int] = []

    def counted(self: Trainer, rows: np.ndarray, progress: float) -> tuple[float, float]:
        trained.append(len(rows))
        return step(self, rows, progress)

    monkeypatch.setattr(Trainer, "step", counted)
    torch.manual_seed(99)
    same(quick(data, whole.guide, checkpoint=tmp_path / "c"), whole)
    # one epoch of the interrupted member and two of each that follows, nothing of those before
    cells = [one.n_cells for one in whole.trained]
    assert sum(trained) == cells[member] + 2 * sum(cells[member + 1 :])


def test_resampling_draws_cells_inside_conditions_and_none_that_validates(data: Screen) -> None:
    rows, held_out = validation_slice(data, 0.2, 5)
    drawn = resampled(data, rows, 5)
    assert not set(drawn) & set(held_out) and set(drawn) < set(rows)
    np.testing.assert_array_equal(np.bincount(data.condition[drawn]), np.bincount(data.condition[rows]))
    # with replacement: a share 1 - (1 - 1/n)^n of a condition's n cells is drawn; 37 % of all are left out
    n = np.bincount(data.condition[rows])
    expected = (n * (1 - (1 - 1 / n) ** n)).sum()
    assert abs(len(set(drawn)) - expected) < 4 * (0.1 * len(rows)) ** 0.5  # variance of the number left out: e^-1 - 2 e^-2 a cell
    np.testing.assert_array_equal(drawn, resampled(data, rows, 5))
    assert not np.array_equal(drawn, resampled(data, rows, 6))
    # cells of other conditions change nothing
    fewer = np.flatnonzero(np.isin(data.condition, [0, 2]))
    part, own = data.cells(fewer), np.isin(fewer, rows)
    picked = fewer[resampled(part, np.flatnonzero(own), 5)]
    np.testing.assert_array_equal(np.sort(picked), drawn[np.isin(data.condition[drawn], [0, 2])])


def test_resampled_members_start_elsewhere_and_know_the_same_screen(boot: Fit, ensemble: Fit, data: Screen) -> None:
    def apart(several: Fit) -> float:
        """How far the starts of two members have the shifts of conditions apart on the gene scale, relative to their size."""
        shifts = []
        for member in several.members[:2]:
            story, guide = member.at_start().modules()
            with torch.no_grad():
                shifts.append(effect_of(guide.assemble(guide.central_values()), story.order) @ story.decoder.responsive)
        return float((shifts[0] - shifts[1]).norm() / shifts[0].norm())

    # a resampled condition of 20 cells differs by its whole sampling noise, another validation slice by a tenth of it
    assert apart(boot) > 1.5 * apart(ensemble)
    first, second = boot.members
    assert first.training is second.training and first.genes is second.genes and first.batches == second.batches == data.batches
    assert second.controls.shape == first.controls.shape  # every control cell, drawn or not
    assert restarts(boot.guide, 0)[0].resample is False and restarts(boot.guide, 0)[1].resample is True


def test_an_ensemble_reports_on_its_members(ensemble: Fit) -> None:
    for name, values in ensemble.history.items():
        np.testing.assert_allclose(values, np.mean([one.history[name] for one in ensemble.members], axis=0))
    table = ensemble.effects_table(5)
    assert table.columns.tolist() == ["member", "target", "latent", "mean", "sd", "inclusion"]
    for i, one in enumerate(ensemble.members):
        block = table[table["member"] == i].drop(columns="member").reset_index(drop=True)
        assert block.equals(one.effects_table(5))
    assert {f.topic for f in ensemble.diagnose()} == {f.topic for f in ensemble.members[0].diagnose()}
    for attribute in ("state", "start_state", "controls", "n_cells", "modules"):
        with pytest.raises(InputError, match=r"3 members.*fit\.members"):
            value = getattr(ensemble, attribute)
            value()


def test_progress_says_which_member_is_trained(data: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def bar(*given: object, **settings: object) -> tqdm:  # type: ignore[type-arg]
        names.append(str(settings["desc"]))
        return tqdm(*given, **{**settings, "disable": True})  # type: ignore[call-overload]

    monkeypatch.setattr("pvae_pyro.inference.svi.tqdm", bar)
    settings = FitSettings(epochs=1, batch_size=1000)
    for guide in (Ensemble(n=2), Amortized()):
        fit(MODEL, data, guide=guide, settings=settings, device="cpu", progress=True)
    assert names == ["fit 1/2", "fit 2/2", "fit"]


def test_an_ensemble_of_any_guide_but_an_ensemble(data: Screen) -> None:
    one = quick(data, Ensemble(n=2, member=LowRank(rank=2)))
    assert all("guide.family.scaled_factor" in member.state for member in one.members)
    assert np.isfinite(draws(one)).all()
    with pytest.raises(InputError, match="ensemble itself"):
        Ensemble(member=Ensemble())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n must be"):
        Ensemble(n=0)
