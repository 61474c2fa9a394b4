"""`fit(model, screen)` -> `Fit`: an immutable result that predicts, diagnoses itself and saves without pickle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..guides import GUIDES, Amortized, AmortizedGuide
from ..screen import CONTROL, ConditionSummary, Screen
from ..splits import validation_slice
from ..story import PARTS, PerturbedVAE, Story
from . import storage
from .cells import CellStore
from .starting import apply_start
from .svi import FitSettings, Trainer
from .versions import versions
from .warm_start import closed_form

if TYPE_CHECKING:
    from ..prediction import Posterior
    from .diagnosis import Finding

log = logging.getLogger("pvae_pyro")
State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Fit:
    """Result of `fit`; immutable, self-contained (no file of the screen is needed again).

    state and start_state: parameters after and before training. genes (G,) of the output, active (G,) those with a count in
    training cells; controls: location and scale of q(z_b | x) of the control cells; library (cells,) of the training
    cells, batch_counts (conditions, batches); training: condition summaries; known_targets: targets that may be asked for.
    """

    model: PerturbedVAE
    guide: Amortized
    settings: FitSettings
    seed: int
    history: dict[str, list[float]]
    state: State
    start_state: State
    genes: NDArray[np.str_]
    active: NDArray[np.bool_]
    targets: tuple[str, ...]
    known_targets: tuple[str, ...]
    conditions: tuple[str, ...]
    design: NDArray[np.float32]
    batches: tuple[str, ...]
    batch_counts: NDArray[np.float64]
    library: NDArray[np.float32]
    controls: Tensor
    start_controls: Tensor
    n_cells: int
    scale: str
    training: ConditionSummary
    notices: tuple[str, ...]
    versions: dict[str, str]
    date: str

    def predict(
        self,
        conditions: str | Sequence[str],
        draws: int = 200,
        n_cells: int | Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> Posterior:
        """Posterior predictions of conditions, in the order asked; order of targets inside a name never matters.

        `draws` joint draws of all globals. `n_cells`: cells of the measured pseudobulk, for all or by canonical name; default
        the condition's own number if it was trained, else the median of the trained perturbations. Raises InputError for an
        unknown target, a repeated condition, no draws or a non-positive number of cells.
        """
        from ..prediction import predict

        return predict(
            self, [conditions] if isinstance(conditions, str) else list(conditions), draws, n_cells, seed
        )

    def diagnose(self) -> tuple[Finding, ...]:
        """Findings in words: whether the perturbation leaked, gates collapsed, training converged."""
        from .diagnosis import diagnose

        return diagnose(self)

    def at_start(self) -> Fit:
        """The same fit before training: the closed-form start, 0 epochs."""
        first = {name: values[:1] for name, values in self.history.items()}
        return replace(self, state=self.start_state, controls=self.start_controls, history=first)

    def modules(self) -> tuple[Story, AmortizedGuide]:
        """Story and guide with the fitted parameters, in evaluation mode on the CPU."""
        rank = self.state["story.effect_scale"].shape[0]
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten below
            story = Story(
                self.model,
                torch.as_tensor(self.design),
                self.n_cells,
                len(self.batches),
                int(self.active.sum()),
                rank,
            )
            guide = self.guide.build(story)
        story.load_state_dict(_part(self.state, "story."))
        guide.load_state_dict(_part(self.state, "guide."))
        return story.eval(), guide.eval()

    def effects_table(self, draws: int = 200, seed: int = 0) -> pd.DataFrame:
        """Latent effects w: target, latent, mean, sd, inclusion (probability of the hard gate; 1 without gates)."""
        from ..prediction.globals import draw_globals

        _, guide = self.modules()
        loc, scale = self.controls.chunk(2, -1)
        drawn = draw_globals(
            guide,
            (loc[:1], scale[:1]),
            torch.as_tensor(self.batch_counts.sum(0), dtype=loc.dtype),
            0,
            draws,
            seed,
        )
        w = torch.stack([d.shared["effects"] for d in drawn]).numpy()
        open_gates = guide.inclusion()
        inclusion = np.ones(w.shape[1:]) if open_gates is None else open_gates.numpy()
        index = pd.MultiIndex.from_product([self.targets, range(w.shape[2])], names=["target", "latent"])
        values = {"mean": w.mean(0).ravel(), "sd": w.std(0).ravel(), "inclusion": inclusion.ravel()}
        return pd.DataFrame(values, index=index).reset_index()

    def save(self, folder: str | Path) -> Path:
        """Write to a new folder: safetensors, npz and JSON, no pickle."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=False)
        storage.save_tensors(path / "state.safetensors", self.state)
        storage.save_tensors(path / "start.safetensors", self.start_state)
        arrays = {
            "genes": np.asarray(self.genes), "active": self.active, "design": self.design, "batch_counts": self.batch_counts,
            "library": self.library, "controls": self.controls.numpy(), "start_controls": self.start_controls.numpy(),
        }  # fmt: skip
        storage.save_arrays(path / "screen.npz", arrays)
        storage.save_arrays(path / "training.npz", self.training.arrays())
        plain = (
            "seed",
            "history",
            "targets",
            "known_targets",
            "conditions",
            "batches",
            "n_cells",
            "scale",
            "notices",
            "versions",
            "date",
        )
        data: dict[str, Any] = {name: getattr(self, name) for name in plain}
        data |= {name: storage.part_to_dict(getattr(self, name)) for name in ("model", "guide", "settings")}
        storage.save_json(path / "fit.json", data)
        return path

    @classmethod
    def load(cls, folder: str | Path, parts: Sequence[type] = ()) -> Fit:
        """Read a saved fit; `parts` are classes of your own that its model uses. Raises InputError for what is not one."""
        path = Path(folder)
        data = storage.load_json(path / "fit.json")
        known = {c.__name__: c for c in (PerturbedVAE, FitSettings, *GUIDES.values(), *parts)}
        known |= {c.__name__: c for kind in PARTS.values() for c in kind.values()}
        for name in ("model", "guide", "settings"):
            data[name] = storage.part_from_dict(data[name], known)
        for name in ("targets", "known_targets", "conditions", "batches", "notices"):
            data[name] = tuple(data[name])
        data["history"] = {
            k: [float("nan") if x is None else x for x in v] for k, v in data["history"].items()
        }
        arrays: dict[str, Any] = storage.load_arrays(path / "screen.npz")
        for name in ("controls", "start_controls"):
            arrays[name] = torch.from_numpy(arrays[name])
        training = ConditionSummary.from_arrays(storage.load_arrays(path / "training.npz"))
        state, start = (storage.load_tensors(path / f"{n}.safetensors") for n in ("state", "start"))
        return cls(state=state, start_state=start, training=training, **arrays, **data)


def fit(
    model: PerturbedVAE,
    screen: Screen,
    *,
    guide: Amortized | None = None,
    settings: FitSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    known_targets: Sequence[str] = (),
    checkpoint: str | Path | None = None,
) -> Fit:
    """Fit the story to every cell of `screen` (split it first: `split_screen`).

    Warm start in closed form, then SVI; see FitSettings. `checkpoint`: a folder that gets the state after every epoch and from
    which an interrupted fit goes on, bit for bit. `known_targets`: further targets that predictions may be asked for.
    Raises InputError for a screen that cannot be fitted and NotFinite when the loss stops being finite.
    """
    guide, settings = guide or Amortized(), settings or FitSettings()
    _check(model, screen, seed)
    where = choose_device(device)
    used = np.asarray(abs(screen.expression).sum(axis=0)).ravel() > 0
    if not used.all():
        log.warning(
            "%d of %d genes are zero in every training cell: predicted as zero.",
            int((~used).sum()),
            len(used),
        )
    inner = screen if used.all() else screen.select_genes([str(g) for g in screen.genes[used]])
    rows, held_out = validation_slice(inner, settings.validation, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        story, amortized = _build(model, guide, settings, inner, rows)
        start_state = _state(story, amortized)
        observes = model.likelihood.observes
        store, other = CellStore(inner, rows, observes, where), CellStore(inner, held_out, observes, where)
        trainer = Trainer(story, amortized, store, other, settings, seed)
        controls = CellStore(
            inner, np.flatnonzero(inner.condition == inner.conditions.index(CONTROL)), observes, where
        )
        start_controls = _background(amortized, controls)
        from .checkpoints import resume_from, save_checkpoint

        if checkpoint is not None:
            resume_from(Path(checkpoint), trainer)
        if settings.epochs:
            trainer.run(
                (lambda t: save_checkpoint(Path(checkpoint), t)) if checkpoint is not None else None, progress
            )
        else:
            trainer.record(float("nan"), float("nan"))
        final_controls = _background(amortized, controls)
    counts = np.zeros((len(screen.conditions), len(screen.batches)))
    np.add.at(counts, (screen.condition, screen.batch), 1.0)
    return Fit(
        model=model, guide=guide, settings=settings, seed=seed, history=trainer.history, state=_state(story, amortized),
        start_state=start_state, genes=np.asarray(screen.genes).astype(str), active=used, targets=screen.targets,
        known_targets=tuple(sorted({*screen.targets, *known_targets})), conditions=screen.conditions,
        design=np.asarray(screen.design, dtype=np.float32), batches=screen.batches, batch_counts=counts,
        library=screen.library.astype(np.float32), controls=final_controls, start_controls=start_controls, n_cells=len(rows),
        scale=screen.scale, training=screen.summary(), notices=screen.notices, versions=versions(), date=date.today().isoformat(),
    )  # fmt: skip


def choose_device(device: str) -> torch.device:
    """'auto' (CUDA if there is one), 'cpu' or 'cuda'."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, but {device!r} was given.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device cuda was asked for, but PyTorch finds no CUDA device here; use --device cpu or auto."
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _check(model: PerturbedVAE, screen: Screen, seed: int) -> None:
    if seed < 0:
        raise InputError(f"seed must not be negative, but {seed} was given.")
    if CONTROL not in screen.conditions or len(screen.conditions) < 2:
        raise InputError(
            "the training screen needs control cells and at least one perturbed condition; check the split."
        )
    if model.likelihood.observes == "counts" and screen.counts is None:
        raise InputError(
            "the negative-binomial likelihood needs raw counts, but the input is normalised; use --layer or gaussian."
        )


def _build(
    model: PerturbedVAE, guide: Amortized, settings: FitSettings, screen: Screen, rows: NDArray[np.int64]
) -> tuple[Story, AmortizedGuide]:
    start = closed_form(model, screen, rows) if settings.warm_start else None
    rank = start.rank if start is not None else (model.responsive or min(30, len(screen.targets)))
    design = torch.as_tensor(np.asarray(screen.design, dtype=np.float32))
    story = Story(model, design, len(rows), len(screen.batches), screen.n_genes, rank)
    amortized = guide.build(story)
    if start is not None:
        apply_start(start, story, amortized)
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


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
