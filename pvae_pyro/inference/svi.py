"""Stochastic variational inference: one loop, torch optimisers, no global parameter store."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from ..errors import InputError
from ..guides import AmortizedGuide
from ..screen import CONTROL
from ..story import Cells, Story
from .cells import BalancedSampler, CellStore, background_means
from .leakage import measure_leakage

log = logging.getLogger("pvae_pyro")

HISTORY = (
    "epoch",
    "loss",
    "held_out_loss",
    "alignment",
    "leakage_background",
    "leakage_responsive",
    "active_units",
    "gate_entropy",
)


@dataclass(frozen=True)
class FitSettings:
    """How a fit is run.

    `epochs` passes over the training cells (0 keeps the closed-form start), `batch_size` cells a step, `learning_rate` of the
    networks (Adam, cosine decay to zero); globals take `globals_rate` times as much and loadings `loadings_rate` times.
    `validation`: share of every condition's training cells kept out of training for the held-out loss.
    `warm_start`: closed-form start; without it loadings, encoders and effects start at random, and only levels, batch effects and
    noise are those of the cells (for experiments: it fails, see diagnose()).
    """

    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 1e-3
    globals_rate: float = 10.0
    loadings_rate: float = 0.1
    gradient_clip: float = 100.0
    validation: float = 0.02
    warm_start: bool = True

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise InputError(f"{name} must be a whole number of at least {low}, but {value!r} was given.")
        for name in ("learning_rate", "globals_rate", "gradient_clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be greater than 0, but {getattr(self, name)} was given.")
        if self.loadings_rate < 0:
            raise InputError(
                f"loadings_rate must not be negative, but {self.loadings_rate} was given; 0 keeps the loadings."
            )
        if not 0 <= self.validation < 1:
            raise InputError(
                f"validation must be at least 0 and below 1, but {self.validation} was given; try 0.02."
            )


class NotFinite(RuntimeError):
    """The loss stopped being finite; the state of the last good epoch is kept."""


class Trainer:
    """State of one SVI run: parameters, optimiser, random generators, history."""

    def __init__(self, story: Story, guide: AmortizedGuide, store: CellStore, held_out: CellStore, settings: FitSettings,
                 seed: int) -> None:  # fmt: skip
        self.device = store.device
        self.story, self.guide, self.settings = story.to(self.device), guide.to(self.device), settings
        self.store, self.held_out = store, held_out
        wants = story.model.alignment
        self.sampler = BalancedSampler(
            store, paired=getattr(wants, "paired", False), matched=getattr(wants, "matched", False)
        )
        self.generator = np.random.default_rng(seed)
        self.elbo = TraceMeanField_ELBO()(story, guide)
        decoder = story.decoder
        loadings = [decoder.responsive, decoder.background]
        chosen = {id(p) for p in loadings}
        groups = guide.parameter_groups()
        rate = settings.learning_rate
        self.optimiser = torch.optim.Adam(
            [
                {"params": groups["globals"], "lr": rate * settings.globals_rate},
                {
                    "params": groups["networks"] + [p for p in story.parameters() if id(p) not in chosen],
                    "lr": rate,
                },
                {"params": loadings, "lr": rate * settings.loadings_rate},
            ]
        )
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.history: dict[str, list[float]] = {name: [] for name in HISTORY}
        probe = np.random.default_rng(0)
        self.probe = _probe_rows(store, probe)

    @property
    def epoch(self) -> int:
        return len(self.history["epoch"])

    def loss(self, rows: np.ndarray, store: CellStore | None = None) -> Tensor:
        """Negative ELBO per training cell from a minibatch: unbiased for the one from all cells."""
        cells = (store or self.store).take(rows)
        index = torch.as_tensor(rows if store is None else np.arange(len(rows)), device=self.device)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Encountered NaN"
            )  # Pyro's; NotFinite says it and stops
            return self._negative_elbo(cells, index) / self.story.n_cells

    def _negative_elbo(self, cells: Cells, index: Tensor) -> Tensor:
        """Exact over the gates that are enumerated: sum over their settings s of q(s) times the loss given s."""
        family, devices = self.guide.family, [self.device] if self.device.type == "cuda" else []
        settings = family.configurations()
        if not settings:
            return self.elbo(cells, index)

        def given(gates: dict[str, Tensor]) -> Tensor:
            with family.pinned(gates):
                return self.elbo(cells, index)

        total = torch.zeros((), device=self.device)
        for number, (gates, probability) in enumerate(settings):
            # all but the last put the noise back: it is the same in every term, and cancels in their differences
            with torch.random.fork_rng(devices, enabled=number + 1 < len(settings)):
                # a thousand graphs would not fit into memory: each is made again on the way back
                total = total + probability * checkpoint(given, gates, use_reentrant=False)
        return total

    def alignment(self) -> Tensor:
        """Alignment penalty from one balanced draw (unbiased), before its weight."""
        part = self.story.model.alignment
        drawn = self.sampler.draw(self.generator)
        if part.weight == 0 or drawn is None:
            return torch.zeros((), device=self.device)
        perturbed, control = drawn
        return part.penalty(
            background_means(self.guide, self.store, perturbed),
            background_means(self.guide, self.store, control),
        )

    def step(self, rows: np.ndarray, progress: float) -> tuple[float, float]:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimiser.zero_grad(set_to_none=True)
        loss, penalty = self.loss(rows), self.alignment()
        (loss + self.story.model.alignment.weight * penalty).backward()
        nn.utils.clip_grad_norm_(
            [p for g in self.optimiser.param_groups for p in g["params"]], self.settings.gradient_clip
        )
        self.optimiser.step()
        return float(loss.detach()), float(penalty.detach())

    def run(
        self, on_epoch: Callable[[Trainer], None] | None = None, progress: bool = True, name: str = "fit"
    ) -> None:
        """Train to `settings.epochs`; `on_epoch` is called after each one, `name` stands at the progress bar.

        Raises NotFinite with the last good state restored.
        """
        # Pyro's argument checks cost a fifth of a step and would raise on the first non-finite value, before we can say so.
        with pyro.validation_enabled(False):
            self._run(on_epoch, progress, name)

    def _run(self, on_epoch: Callable[[Trainer], None] | None, progress: bool, name: str) -> None:
        total = self.settings.epochs
        steps = max(math.ceil(len(self.store) / self.settings.batch_size), 1)
        if self.epoch == 0:
            self.record(float("nan"), float("nan"))
        bar = tqdm(total=total, initial=self.epoch - 1, desc=name, unit="epoch", disable=not progress)
        while self.epoch - 1 < total:
            good = copy.deepcopy((self.story.state_dict(), self.guide.state_dict()))
            losses, penalties = [], []
            for number, rows in enumerate(self.store.epoch(self.settings.batch_size, self.generator)):
                done = (self.epoch - 1 + number / steps) / total
                loss, penalty = self.step(rows, done)
                if not math.isfinite(loss):
                    bar.close()
                    self._give_up(loss, good)
                losses.append(loss)
                penalties.append(penalty)
            # the last step's damage shows in the next loss only: look before the epoch is recorded and kept
            if not math.isfinite(after := self._loss_now()):
                bar.close()
                self._give_up(after, good)
            self.record(float(np.mean(losses)), float(np.mean(penalties)))
            bar.set_postfix(
                loss=f"{self.history['loss'][-1]:.2f}", leak=f"{self.history['leakage_responsive'][-1]:.3f}"
            )
            bar.update(1)
            if on_epoch is not None:
                on_epoch(self)
        bar.close()

    def _give_up(self, loss: float, good: tuple[dict[str, Any], dict[str, Any]]) -> NoReturn:
        """Restore the state at the beginning of this epoch and raise."""
        self.story.load_state_dict(good[0])
        self.guide.load_state_dict(good[1])
        raise NotFinite(
            f"The loss became {loss} in epoch {self.epoch}; the state before that epoch was kept: "
            "lower learning_rate or look for extreme values in the data."
        )

    def _loss_now(self) -> float:
        """Loss of the probed cells under the present parameters; no random number is used up."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(self.loss(self.probe))

    def record(self, loss: float, penalty: float) -> None:
        """Append one epoch to the history; epoch 0 is the start."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same noise every epoch, so that the curve shows the parameters
            held = (
                float("nan")
                if not len(self.held_out)
                else float(self.loss(np.arange(len(self.held_out)), self.held_out))
            )
            if math.isnan(loss):
                loss = float(self.loss(self.probe))
                penalty = float(self.alignment()) if not self.history["epoch"] else penalty
        row: dict[str, Any] = {"epoch": self.epoch, "loss": loss, "held_out_loss": held, "alignment": penalty}
        row |= measure_leakage(self.guide, self.store, self.probe)
        for name in HISTORY:
            self.history[name].append(float(row[name]))


def _probe_rows(store: CellStore, generator: np.random.Generator, per_condition: int = 40) -> np.ndarray:
    """Cells on which leakage is measured: up to 40 of each condition, ten times as many controls."""
    code, rows = store.screen.condition[store.rows], []
    for i, name in enumerate(store.screen.conditions):
        members, most = np.flatnonzero(code == i), per_condition * (10 if name == CONTROL else 1)
        rows.append(members if len(members) <= most else generator.choice(members, most, replace=False))
    return np.concatenate(rows)
