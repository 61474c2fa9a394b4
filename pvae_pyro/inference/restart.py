"""One run of the optimiser on one screen, from the closed-form start to the last epoch; a fit has one or several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..guides import Amortized, AmortizedGuide, Sampled, SampledGuide
from ..guides.ensemble import Restart
from ..screen import CONTROL, Screen
from ..splits import validation_slice
from ..story import PerturbedVAE, Story
from ..story.loadings import GeneSets
from ..summary import cells_by_condition, condition_generator
from . import storage
from .cells import CellStore
from .checkpoints import resume_from, save_checkpoint
from .collapsed import check_linear, check_small
from .sampling import sample_globals
from .starting import apply_start, random_start
from .svi import FitSettings, Trainer
from .warm_start import closed_form

State = dict[str, Tensor]
_CONTROLS = "controls"


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run leaves. state and start_state: parameters after and before training; controls and start_controls: location
    and scale of q(z_b | x) of the control cells then; n_cells: cells trained on.
    """

    guide: Amortized
    seed: int
    n_cells: int
    history: dict[str, list[float]]
    state: State
    start_state: State
    controls: Tensor
    start_controls: Tensor

    def at_start(self) -> Trained:
        """The same run before training."""
        first = {name: values[:1] for name, values in self.history.items()}
        return replace(self, state=self.start_state, controls=self.start_controls, history=first)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the tensors into a folder; returns the rest as plain data."""
        folder.mkdir(exist_ok=True)
        storage.save_tensors(folder / "state.safetensors", self.state | {_CONTROLS: self.controls})
        storage.save_tensors(folder / "start.safetensors", self.start_state | {_CONTROLS: self.start_controls})
        return {"seed": self.seed, "n_cells": self.n_cells, "history": self.history}

    @classmethod
    def load(cls, folder: Path, guide: Amortized, data: dict[str, Any]) -> Trained:
        """The inverse of `save`."""
        state, start = (storage.load_tensors(folder / f"{name}.safetensors") for name in ("state", "start"))
        history = {k: [float("nan") if x is None else x for x in v] for k, v in data["history"].items()}
        controls, start_controls = state.pop(_CONTROLS), start.pop(_CONTROLS)
        return cls(guide, data["seed"], data["n_cells"], history, state, start, controls, start_controls)


def train(
    model: PerturbedVAE,
    screen: Screen,
    restart: Restart,
    settings: FitSettings,
    device: torch.device,
    checkpoint: Path | None,
    progress: bool,
    name: str,
) -> Trained:
    """Start and train one run on a screen whose genes are all seen; `name` stands at the progress bar."""
    if isinstance(restart.guide, Sampled):
        check_linear(model)
        check_small(screen)
    rows, held_out = training_rows(screen, restart, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(restart.seed)
        story, guide = build(model, restart.guide, settings, screen, rows)
        start_state = _state(story, guide)
        observes = model.likelihood.observes
        store, other = CellStore(screen, rows, observes, device), CellStore(screen, held_out, observes, device)
        trainer = Trainer(story, guide, store, other, settings, restart.seed)
        control = np.flatnonzero(screen.condition == screen.conditions.index(CONTROL))
        controls = CellStore(screen, control, observes, device)
        start_controls = _background(guide, controls)
        keep = None
        if checkpoint is not None:
            resume_from(checkpoint, trainer)
            keep = partial(save_checkpoint, checkpoint)
        if settings.epochs:
            trainer.run(keep, progress, name)
        else:
            trainer.record(float("nan"), float("nan"))
        if isinstance(guide, SampledGuide):
            sample_globals(guide, screen, rows, restart.seed, progress, name)
        final_controls = _background(guide, controls)
    return Trained(restart.guide, restart.seed, len(rows), trainer.history, _state(story, guide), start_state,
                   final_controls, start_controls)  # fmt: skip


def training_rows(screen: Screen, run: Restart, settings: FitSettings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cells that a run is trained on, and those that it keeps out; the former may repeat."""
    rows, held_out = validation_slice(screen, settings.validation, run.seed)
    return resampled(screen, rows, run.seed) if run.resample else rows, held_out


def resampled(screen: Screen, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """As many of these rows of each condition, drawn with replacement, sorted; no condition's draw depends on another's cells."""
    allowed, drawn = np.zeros(screen.n_cells, dtype=bool), []
    allowed[rows] = True
    for name, cells in zip(screen.conditions, cells_by_condition(screen), strict=True):
        own = cells[allowed[cells]]
        drawn.append(own[np.sort(condition_generator(name, seed, "resample").integers(len(own), size=len(own)))])
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def build(
    model: PerturbedVAE, guide: Amortized, settings: FitSettings, screen: Screen, rows: NDArray[np.int64]
) -> tuple[Story, AmortizedGuide]:
    """Story and guide for a screen whose genes are all seen, at the closed-form start from these rows of it.

    Without a warm start it gives levels, batch effects and noise only, and `random_start` says what becomes of the rest.
    """
    sets = model.loadings if isinstance(model.loadings, GeneSets) else None
    if model.loadings is not None and sets is None and not settings.warm_start:
        raise InputError("how well loadings are known comes from the closed-form start: uncertain loadings need warm_start=True.")
    if sets is not None and settings.warm_start:
        raise InputError("the closed-form start knows no gene sets: fit them with FitSettings(warm_start=False).")
    start = closed_form(model, screen, rows)
    rank = start.rank if settings.warm_start else (model.responsive or min(30, len(screen.targets)))
    rank = rank if sets is None else len(sets.sets)
    design = torch.as_tensor(np.asarray(screen.design, dtype=np.float32))
    story = Story(model, design, len(rows), len(screen.batches), screen.n_genes, rank)
    amortized = guide.build(story)
    if settings.warm_start:
        apply_start(start, story, amortized)
    else:
        random_start(start, story, amortized)
    if sets is not None:
        story.decoder.keep_zero(sets.outside([str(gene) for gene in screen.genes]))
    return story, amortized


def _background(guide: AmortizedGuide, store: CellStore) -> Tensor:
    """Location and scale of q(z_b | x), (cells, 2 * background), on the CPU."""
    out = []
    with torch.no_grad():
        for first in range(0, len(store), 2048):
            cells = store.take(np.arange(first, min(first + 2048, len(store))))
            out.append(torch.cat(guide.background(cells), -1))
    return torch.cat(out).cpu()


def _state(story: Story, guide: AmortizedGuide) -> State:
    tensors = {f"story.{k}": v for k, v in story.state_dict().items()} | {
        f"guide.{k}": v for k, v in guide.state_dict().items()
    }
    return {name: t.detach().cpu().clone() for name, t in tensors.items()}
