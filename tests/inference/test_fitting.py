"""A fit repeats bit for bit: after saving, after an interruption, beside another fit, and whatever else the file holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from pvae_pyro.errors import InputError
from pvae_pyro.inference import Fit, FitSettings, NotFinite, fit
from pvae_pyro.inference.diagnosis import held_out_coverage
from pvae_pyro.inference.svi import HISTORY, Trainer
from pvae_pyro.screen import Screen, split_screen
from pvae_pyro.simulate import SimulatedScreen
from pvae_pyro.story import (
    Additive,
    CausalGraph,
    Gaussian,
    Interaction,
    NegativeBinomial,
    NoAlignment,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
    Saturating,
    SpikeSlab,
)

pytestmark = pytest.mark.filterwarnings("error")
MODEL = PerturbedVAE(background=3, hidden=4)
SETTINGS = FitSettings(epochs=2, batch_size=128, validation=0.05)
ScreenOf = Callable[..., Screen]


def quick(screen: Screen, model: PerturbedVAE = MODEL, seed: int = 0, settings: FitSettings = SETTINGS, **more: object) -> Fit:
    return fit(model, screen, seed=seed, settings=settings, device="cpu", progress=False, **more)  # type: ignore[arg-type]


def draws(fitted: Fit, conditions: Sequence[str] = ("T01+T02", "T03", "control")) -> np.ndarray:
    return fitted.predict(list(conditions), draws=5, n_cells=50, seed=3).draws()


def same(one: Fit, other: Fit) -> None:
    """Equal bit for bit: parameters, history and draws."""
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert list(one.history) == list(other.history) == list(HISTORY)
    np.testing.assert_equal(one.history, other.history)
    np.testing.assert_array_equal(draws(one), draws(other))


@pytest.fixture(scope="module")
def fitted(screen: ScreenOf) -> Fit:
    return quick(screen("default"))


def test_a_saved_fit_gives_the_same_draws(fitted: Fit, tmp_path: Path) -> None:
    again = Fit.load(fitted.save(tmp_path / "run"))
    same(again, fitted)
    same(again.at_start(), fitted.at_start())
    assert not torch.equal(again.start_state["guide.family.loc.effects"], again.state["guide.family.loc.effects"])
    for field in dataclasses.fields(Fit):
        one, other = getattr(fitted, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and np.array_equal(one, other)
        elif field.name not in ("trained", "training", "validation"):
            assert one == other
    for one, other in zip(fitted.trained, again.trained, strict=True):
        assert (one.guide, one.seed, one.n_cells) == (other.guide, other.seed, other.n_cells)
        assert torch.equal(one.controls, other.controls) and torch.equal(one.start_controls, other.start_controls)
    assert fitted.validation is not None and again.validation is not None
    for one, other in ((fitted.training, again.training), (fitted.validation, again.validation)):
        for name, values in one.arrays().items():
            np.testing.assert_array_equal(values, other.arrays()[name])
    assert again.effects_table(5).equals(fitted.effects_table(5))
    assert not list((tmp_path / "run").glob("*.p*kl*"))


def test_settings_and_own_parts_survive_the_disk(screen: ScreenOf, tmp_path: Path) -> None:
    model = PerturbedVAE(NormalEffects(0.1), NoGraph(), Additive(0.9, 0.1), alignment=NoAlignment(), background=2, hidden=0)
    one = quick(screen(), model, settings=FitSettings(epochs=0))
    again = Fit.load(one.save(tmp_path / "run"))
    assert again.model == model and again.settings == FitSettings(epochs=0)
    same(again, one)

    @dataclasses.dataclass(frozen=True)
    class OwnEffects(NormalEffects):
        pass

    own = dataclasses.replace(one, model=model.replace(effects=OwnEffects(0.1))).save(tmp_path / "own")
    with pytest.raises(InputError, match="OwnEffects"):
        Fit.load(own)
    assert isinstance(Fit.load(own, parts=[OwnEffects]).model.effects, OwnEffects)


@pytest.mark.parametrize("name", ["fit.json", "state.safetensors", "screen.npz", "training.npz"])
@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_damaged_run_is_refused(name: str, damage: str, fitted: Fit, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "run") / name
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=name):
        Fit.load(tmp_path / "run")


@pytest.mark.parametrize("where", ["between epochs", "inside an epoch"])
def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened(
    where: str, screen: ScreenOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = screen(), dataclasses.replace(SETTINGS, epochs=3)
    whole = quick(data, settings=settings)
    step, folder, calls = Trainer.step, tmp_path / "checkpoint", 0

    def broken(self: Trainer, rows: np.ndarray, progress: float) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        if calls == (4 if where == "between epochs" else 5):  # three steps an epoch
            raise KeyboardInterrupt
        return step(self, rows, progress)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        quick(data, settings=settings, checkpoint=folder)
    monkeypatch.undo()
    assert (folder / "checkpoint.json").exists() and calls > 3
    torch.manual_seed(99)  # whatever the new process did before
    resumed = quick(data, settings=settings, checkpoint=folder)
    same(resumed, whole)
    same(quick(data, settings=settings, checkpoint=folder), whole)  # and once finished it stays as it is


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    screen: ScreenOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, loss, broken = screen(), Trainer.loss, True
    seen: list[Trainer] = []

    def poisoned(self: Trainer, rows: np.ndarray, store: object = None) -> torch.Tensor:
        seen.append(self)
        value = loss(self, rows, store)  # type: ignore[arg-type]
        return value + float("nan") if broken and self.epoch == 2 and torch.is_grad_enabled() else value

    monkeypatch.setattr(Trainer, "loss", poisoned)
    settings = dataclasses.replace(SETTINGS, epochs=3)
    with pytest.raises(NotFinite, match="epoch 2.*learning_rate"):
        quick(data, settings=settings, checkpoint=tmp_path / "checkpoint")
    trainer = seen[-1]
    assert trainer.epoch == 2 and len(trainer.history["loss"]) == 2
    after_one: dict[str, torch.Tensor] = {}
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "loss", poisoned)
    broken = False
    original = Trainer.record

    def record(self: Trainer, loss: float, penalty: float) -> None:
        original(self, loss, penalty)
        if self.epoch == 2:
            after_one.update({n: t.clone() for n, t in self.guide.state_dict().items()})

    monkeypatch.setattr(Trainer, "record", record)
    whole = quick(data, settings=settings)
    # the poisoned run was put back to the end of epoch 1, and its checkpoint goes on from there
    assert all(torch.equal(t, after_one[n]) for n, t in trainer.guide.state_dict().items())
    same(quick(data, settings=settings, checkpoint=tmp_path / "checkpoint"), whole)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_step_that_ruins_the_parameters_is_noticed_in_its_own_epoch(rate: float, screen: ScreenOf, tmp_path: Path) -> None:
    """One step an epoch and one epoch: no later loss would show it."""
    settings = FitSettings(epochs=1, batch_size=10_000, learning_rate=rate)
    with pytest.raises(NotFinite):
        quick(screen(), settings=settings, checkpoint=tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_fits_in_one_process_do_not_touch_each_other(screen: ScreenOf) -> None:
    data, other = screen(), screen("default", seed=2)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    one = quick(data)
    second = quick(other, PerturbedVAE(NormalEffects(), NoGraph(), background=2, hidden=0, likelihood=NegativeBinomial()))
    expected = draws(one)
    again = quick(data)
    same(one, again)
    np.testing.assert_array_equal(draws(one), expected)
    assert second.state["guide.family.loc.effects"].shape != one.state["guide.family.loc.effects"].shape or not torch.equal(
        second.state["guide.family.loc.effects"], one.state["guide.family.loc.effects"]
    )
    assert len(pyro.get_param_store()) == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_another_seed_is_another_fit(screen: ScreenOf, fitted: Fit) -> None:
    assert not np.array_equal(draws(quick(screen("default"), seed=1)), draws(fitted))
    with pytest.raises(InputError, match="seed"):
        quick(screen(), seed=-1)


def test_a_fit_cannot_be_changed(fitted: Fit) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted.seed = 5  # type: ignore[misc]
    expected, state = draws(fitted), {n: t.clone() for n, t in fitted.state.items()}
    story, guide = fitted.modules()
    with torch.no_grad():
        for p in (*story.parameters(), *guide.parameters()):
            p.fill_(7.0)
        story.effect_scale.fill_(7.0)
    assert all(torch.equal(fitted.state[n], t) for n, t in state.items())
    fitted.diagnose()
    fitted.at_start().predict("T01+T05", draws=2).new_cells("T01+T05", 3)
    np.testing.assert_array_equal(draws(fitted), expected)


@pytest.mark.parametrize("likelihood", [Gaussian(), NegativeBinomial()], ids=["gaussian", "counts"])
def test_singles_only_is_blind_to_combinations_in_the_file(likelihood: object, world: Callable[..., SimulatedScreen]) -> None:
    adata = world("default", doubles=6).adata
    singles = AnnData(adata.X[(mask := ~adata.obs["condition"].str.contains(r"\+").to_numpy())], adata.obs[mask], adata.var)
    assert singles.n_obs < adata.n_obs
    model = MODEL.replace(likelihood=likelihood)
    fits = []
    for data in (adata, singles):
        train = split_screen(Screen.from_anndata(data, "condition", batch_key="batch"), "singles").train
        fits.append(quick(train, model, known_targets=train.targets))
    same(*fits)
    assert fits[0].conditions == ("control", *(f"T{i:02d}" for i in range(1, 9)))


def test_genes_without_a_count_are_predicted_as_zero(
    world: Callable[..., SimulatedScreen], caplog: pytest.LogCaptureFixture
) -> None:
    adata = world("default").adata.copy()
    silent = np.zeros(adata.n_vars, dtype=bool)
    silent[[0, 7, 39]] = True
    matrix = adata.X.toarray()
    matrix[:, silent] = 0
    adata.X = matrix
    data = Screen.from_anndata(adata, "condition", batch_key="batch")
    for likelihood in (Gaussian(), NegativeBinomial()):
        caplog.clear()
        one = quick(data, MODEL.replace(likelihood=likelihood))
        assert [r.levelname for r in caplog.records if "3 of 40 genes are zero" in r.getMessage()] == ["WARNING"]
        posterior = one.predict(["T01", "T01+T02"], draws=5)
        assert posterior.genes.tolist() == list(adata.var_names)
        for kind in ("latent_mean", "measured_pseudobulk"):
            values = posterior.draws(kind)  # type: ignore[arg-type]
            assert not values[:, :, silent].any() and (values[:, :, ~silent] != 0).all()
        assert not posterior.new_cells("T01", 4)[:, silent].any()
        assert not posterior.interaction("T01+T02").draws[:, silent].any()


@pytest.mark.parametrize("effects", [SpikeSlab(), NormalEffects()], ids=["spike-slab", "normal"])
@pytest.mark.parametrize("likelihood", [Gaussian(), NegativeBinomial()], ids=["gaussian", "counts"])
def test_parts_train_without_a_warning_and_move_from_the_start(effects: object, likelihood: object, screen: ScreenOf) -> None:
    other = {"graph": CausalGraph(), "composition": Saturating()} if isinstance(effects, SpikeSlab) else {
        "graph": NoGraph(), "composition": Additive(), "alignment": NoAlignment()}  # fmt: skip
    one = quick(screen("default"), MODEL.replace(effects=effects, likelihood=likelihood, **other))
    assert one.history["epoch"] == [0, 1, 2]
    for name in HISTORY:
        assert len(one.history[name]) == 3 and np.isfinite(one.history[name]).all()
    moved = [n for n, t in one.state.items() if not torch.equal(t, one.start_state[n])]
    globals_ = {"guide.family.loc.effects", "guide.combination_loc"}
    assert {"story.decoder.responsive", "guide.gain_background"} | globals_ <= set(moved)
    assert not {"story.design", "story.effect_scale", "guide.centre"} & set(moved)
    assert np.isfinite(draws(one)).all()
    assert (one.history["gate_entropy"][-1] > 0) == isinstance(effects, SpikeSlab)


def test_widths_switched_off_leave_a_sound_loss(screen: ScreenOf) -> None:
    off = Interaction(width=0.0, width_spread=0.0, outside=0.0, surprise_spread=0.0)
    one, other = (quick(screen(), MODEL.replace(interaction=part)) for part in (Interaction(), off))
    # the cells are the same and so is their noise: some nats apart, not millions
    assert abs(one.history["held_out_loss"][-1] - other.history["held_out_loss"][-1]) < 20
    posterior = other.predict(["T01+T02", "T03+T08"], draws=4)
    shared = posterior.recipe.draws[0].shared
    assert not shared["kappa"].any() and np.isfinite(posterior.draws()).all()


@pytest.mark.parametrize("targets", [1, 2])
def test_the_smallest_screens_can_be_fitted(targets: int, screen: ScreenOf) -> None:
    data = screen(targets=targets, doubles=0, genes=3, controls=6, cells_per_condition=2, cells_spread=0.0)
    one = quick(data, PerturbedVAE(background=1, hidden=0), settings=FitSettings(epochs=1, validation=0.0))
    assert np.isfinite(draws(one, ["T01", "control"])).all()


def test_the_diagnosis_flags_a_random_start_and_passes_the_default(screen: ScreenOf) -> None:
    data = screen(controls=300, cells_per_condition=40, genes=60)
    trained = quick(data, settings=FitSettings(epochs=3))
    assert "do not trust" not in {f.level for f in trained.diagnose()}
    random = quick(data, MODEL.replace(responsive=4), settings=FitSettings(epochs=3, warm_start=False))
    flagged = {f.topic for f in random.diagnose() if f.level == "do not trust"}
    assert "predicts what it was trained on" in flagged
    assert all(f.advice for f in random.diagnose() if f.level == "do not trust")


def test_what_cannot_be_fitted_is_refused(screen: ScreenOf) -> None:
    data = screen()
    with pytest.raises(InputError, match="control cells and at least one perturbed"):
        quick(data.restrict(["control"]))
    with pytest.raises(InputError, match="control cells"):
        quick(data.restrict(["T01", "T02"]))
    with pytest.raises(InputError, match="raw counts"):
        quick(data, MODEL.replace(likelihood=NegativeBinomial()))
    with pytest.raises(InputError, match="device"):
        fit(MODEL, data, device="tpu", progress=False)
    one_each = data.cells(np.array([int(np.flatnonzero(data.condition == c)[0]) for c in range(len(data.conditions))]))
    for few in (one_each, data.select_genes([str(g) for g in data.genes[:2]])):
        with pytest.raises(InputError, match="too few"):
            quick(few)
    still = dataclasses.replace(data, expression=sp.csr_matrix(np.ones(data.expression.shape, np.float32)))
    with pytest.raises(InputError, match="nothing to learn"):
        quick(still)


def test_pairs_alone_are_fitted_and_said_to_rest_on_the_prior(screen: ScreenOf) -> None:
    data = screen(targets=4, doubles=5, cells_per_condition=60, controls=200)
    pairs = [c for c in data.conditions if "+" in c]
    one = quick(data.restrict(["control", *pairs]), settings=FitSettings(epochs=1))
    truth, control = data.summary().restrict(pairs).mean, data.summary().restrict(["control"]).mean
    found = one.predict(pairs, draws=20).draws("latent_mean").mean(0)
    assert np.linalg.norm(found - truth) < 0.5 * np.linalg.norm(control - truth)
    assert "informed prior" in next(f.sentence for f in one.diagnose() if f.topic == "combinations")


def test_held_out_cells_tell_noise_that_is_too_small(screen: ScreenOf) -> None:
    data = screen(controls=300, cells_per_condition=40, genes=60)
    one = quick(data, settings=FitSettings(epochs=3, validation=0.1))
    assert one.validation is not None and set(one.validation.conditions) == set(data.conditions)
    share = held_out_coverage(one)
    assert share is not None and share > 0.84  # 0.9 less what a hundred draws and a tenth of the cells leave open
    state = dict(one.state)
    for name in ("guide.family.loc.noise", "story.decoder.background"):
        state[name] = state[name] - 1.5 if "noise" in name else 0.1 * state[name]
    narrow = dataclasses.replace(one, trained=(dataclasses.replace(one.trained[0], state=state),))
    found = held_out_coverage(narrow)
    assert found is not None and found < share - 0.1
    assert next(f for f in narrow.diagnose() if f.topic == "calibration on held-out cells").level != "fine"
    assert held_out_coverage(quick(data, settings=FitSettings(epochs=0, validation=0.0))) is None


def test_parameters_of_another_version_are_refused_in_a_sentence(screen: ScreenOf) -> None:
    one = quick(screen(controls=60, cells_per_condition=20, genes=30), settings=FitSettings(epochs=0, validation=0.0))
    state = {name: values for name, values in one.state.items() if name != "story.typical"}
    older = dataclasses.replace(one, trained=(dataclasses.replace(one.trained[0], state=state),))
    with pytest.raises(InputError, match="another version"):
        older.predict(["T01"], draws=2)
