"""Findings of a fit whose history, latents or conditions are made what they should be told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pvae_pyro.guides import Ensemble
from pvae_pyro.inference import Fit, FitSettings, diagnosis, fit
from pvae_pyro.inference.diagnosis import Finding, held_out_coverage
from pvae_pyro.screen import Screen
from pvae_pyro.story import PerturbedVAE

MODEL = PerturbedVAE(background=3, hidden=4)
EPOCHS = 4


@pytest.fixture(scope="module")
def trained(screen: Callable[..., Screen]) -> Fit:
    data = screen("default", doubles=4)
    return fit(MODEL, data, settings=FitSettings(epochs=EPOCHS, validation=0.1), device="cpu", progress=False)


def found(one: Fit, topic: str) -> Finding:
    return next(f for f in one.diagnose() if f.topic == topic)


def with_history(one: Fit, **last: list[float]) -> Fit:
    return replace(one, trained=(replace(one.trained[0], history=one.trained[0].history | last),))


LEVELS: list[tuple[str, dict[str, list[float]], str]] = [
    ("background leakage", {"leakage_background": [0.0, 0.01]}, "fine"),
    ("background leakage", {"leakage_background": [0.0, 0.05]}, "look"),
    ("background leakage", {"leakage_background": [0.0, 0.5]}, "do not trust"),
    ("responsive leakage", {"leakage_responsive": [0.05]}, "fine"),
    ("responsive leakage", {"leakage_responsive": [0.2]}, "look"),
    ("responsive leakage", {"leakage_responsive": [0.5]}, "do not trust"),
    ("latents in use", {"active_units": [0.0]}, "do not trust"),
    ("convergence", {"held_out_loss": [10.0, 5.0, 4.99, 4.98, 4.98]}, "fine"),
    ("convergence", {"held_out_loss": [10.0, 9.0, 8.0, 7.0, 6.0]}, "look"),
    ("convergence", {"held_out_loss": [10.0, 5.0, 6.0, 7.0, 8.0]}, "look"),
    ("convergence", {"held_out_loss": [float("nan")] * 5}, "look"),
    ("convergence", {"held_out_loss": [10.0, 5.0]}, "look"),
]


@pytest.mark.parametrize(("topic", "history", "level"), LEVELS)
def test_levels_follow_what_was_recorded(trained: Fit, topic: str, history: dict[str, list[float]], level: str) -> None:
    one = found(with_history(trained, **history), topic)
    assert one.level == level and (one.level == "fine") == (one.advice == "")


def test_every_finding_that_is_not_fine_says_what_to_do(trained: Fit) -> None:
    for one in (trained, trained.at_start()):
        findings = one.diagnose()
        assert len({f.topic for f in findings}) == len(findings) > 8
        assert [f.topic for f in findings if f.level != "fine" and not f.advice] == []


def test_a_short_run_is_usable_from_the_warm_start_only(trained: Fit) -> None:
    short = {"held_out_loss": [10.0, 9.0]}
    warm = found(with_history(trained, **short), "convergence")
    cold = found(with_history(replace(trained, settings=replace(trained.settings, warm_start=False)), **short), "convergence")
    assert "usable" in warm.advice and "closed-form start" in warm.sentence
    assert cold.level == "do not trust" and "random start" in cold.sentence and "usable" not in cold.advice


@pytest.mark.parametrize(("shut", "level"), [(0, "fine"), (2, "look"), (3, "do not trust")])
def test_background_latents_in_which_cells_do_not_differ_are_told(trained: Fit, shut: int, level: str) -> None:
    assert float(trained.controls[:, :3].var(0).min()) > 10 * diagnosis.USED
    controls = trained.controls.clone()
    controls[:, :shut] = 0.05 * torch.randn(len(controls), shut)  # variance 0.0025, its posterior sd as it was
    one = found(replace(trained, trained=(replace(trained.trained[0], controls=controls),)), "background latents in use")
    assert one.level == level and f"in {3 - shut} of 3" in one.sentence


@pytest.mark.parametrize(("probability", "level"), [(0.3, "fine"), (0.001, "look"), (0.999, "look")])
def test_gates_that_are_all_shut_or_open_are_told(trained: Fit, probability: float, level: str) -> None:
    state, name = dict(trained.state), "guide.family.logits.gates"
    state[name] = torch.full_like(state[name], np.log(probability / (1 - probability)))
    one = found(replace(trained, trained=(replace(trained.trained[0], state=state),)), "gates")
    assert one.level == level and f"{100 * probability:.0f} %" in one.sentence


def test_batches_that_control_has_no_part_in_are_told(trained: Fit) -> None:
    """Linked through a third condition is enough; batches of one's own are not."""
    control, n = trained.conditions.index("control"), len(trained.conditions)
    own = np.zeros((n, 2))
    own[:, 1], own[control] = 20, (20, 0)
    two = {"batches": ("a", "b")}
    apart = diagnosis._batches(replace(trained, batch_counts=own, **two))
    linked = own.copy()
    linked[(control + 1) % n, 0] = 1  # one cell beside control, the rest where the others are
    assert apart is not None and apart.level == "do not trust" and f"{n - 1} of {n - 1}" in apart.sentence and apart.advice
    joined = diagnosis._batches(replace(trained, batch_counts=linked, **two))
    assert joined is not None and joined.level == "fine"
    assert diagnosis._batches(trained) is None or len(trained.batches) > 1


def designed(one: Fit, pairs: int, alone: int) -> Fit:
    """The same fit as if so many pairs of neighbouring targets, and that many singles, had been trained."""
    eye = np.eye(len(one.targets), dtype=np.float32)
    n = len(eye)
    combined = np.stack([eye[i % n] + eye[(i + 1 + i // n) % n] for i in range(pairs)]) if pairs else np.zeros((0, n), np.float32)
    return replace(one, design=np.concatenate([np.zeros((1, n), np.float32), eye[:alone], combined]))


@pytest.mark.parametrize(
    ("pairs", "alone", "level", "said"),
    [(0, 8, "look", "no combination"), (2, 8, "look", "2 of 2"), (12, 1, "look", "0 of 12"),
     (4, 8, "look", "4 trained combinations"), (12, 8, "fine", "12 trained combinations")],
)  # fmt: skip
def test_combinations_count_where_their_targets_were_measured_alone(
    trained: Fit, pairs: int, alone: int, level: str, said: str
) -> None:
    one = diagnosis._combinations(designed(trained, pairs, alone))
    assert one.level == level and said in one.sentence and (one.level == "fine") == (one.advice == "")
    assert ("informed prior" in one.sentence) == (said in ("no combination", "2 of 2", "0 of 12"))


def test_intervals_that_are_too_wide_are_told(trained: Fit) -> None:
    share = held_out_coverage(trained)
    assert share is not None and found(trained, "calibration on held-out cells").level == "fine"
    state = dict(trained.state)
    state["guide.family.loc.noise"] = state["guide.family.loc.noise"] + 1.0  # log sd of a gene's noise
    one = replace(trained, trained=(replace(trained.trained[0], state=state),))
    wide = found(one, "calibration on held-out cells")
    assert held_out_coverage(one) > diagnosis.WIDE and wide.level == "look" and "wider" in wide.advice  # type: ignore[operator]


def test_an_ensemble_is_judged_by_the_member_that_kept_the_cells_out(screen: Callable[..., Screen]) -> None:
    settings: dict[str, Any] = {"settings": FitSettings(epochs=1, validation=0.1), "device": "cpu", "progress": False}
    both = fit(MODEL, screen("default"), guide=Ensemble(2), **settings)
    assert held_out_coverage(both) == held_out_coverage(both.members[0]) != held_out_coverage(
        replace(both.members[1], validation=both.validation))  # fmt: skip
