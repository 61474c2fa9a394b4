"""The RUN folder of a fit: what is in it, when it may be written, continued or replaced.

RUN holds `run.json` (what was fitted, from what, with which versions), `config.toml`, `fit/` (written by
`Fit.save`), and, where conditions were held out, `held_out.npz` (their measured summaries, read by `evaluate`
alone) and `held_out.txt` (their names, one a line). Until a fit is complete all of it lies in `RUN.partial`
with a `checkpoint/`, so that RUN is either whole or not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pvae_pyro import outputs
from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from pvae_pyro.screen import ConditionSummary, Screen

KIND = "pvae_pyro run"
MARKER = "run.json"
FORMAT = 2
_HELD_OUT = "held_out.npz"


@dataclass(frozen=True)
class Run:
    """A complete run on disk: its folder and what `run.json` says."""

    folder: Path
    facts: dict[str, Any]

    @property
    def fit(self) -> Path:
        """Where `Fit.load` finds the fit."""
        return self.folder / "fit"

    @property
    def settings(self) -> dict[str, Any]:
        """What the fit was asked for."""
        settings: dict[str, Any] = self.facts["settings"]
        return settings

    def held_out(self) -> ConditionSummary:
        """Measured summaries of the conditions of the data not trained on; InputError where there are none."""
        from pvae_pyro.inference.storage import load_arrays
        from pvae_pyro.screen import ConditionSummary

        path = self.folder / _HELD_OUT
        if not path.exists():
            raise InputError(
                f"the run {self.folder} was trained on every condition of its data; give cells to score on with "
                "--test."
            )
        return ConditionSummary.from_arrays(load_arrays(path))


def open_run(path: Path) -> Run:
    """The complete run in a folder. Raises InputError when it is missing, unfinished or not a run."""
    if not path.exists():
        if _state_of(partial_of(path)):
            raise InputError(f"the fit of {path} is unfinished; finish it first with fit --resume.")
        raise InputError(f"the run folder {path} does not exist; name one that `pvae-pyro fit` wrote.")
    if not path.is_dir():
        raise InputError(f"{path} is a file and no run folder; name a folder that `pvae-pyro fit` wrote.")
    facts = outputs.read_marker(path, MARKER, KIND)
    if facts is None:
        raise InputError(f"the folder {path} is no run of pvae_pyro; name one that `pvae-pyro fit` wrote.")
    if facts.get("format") != FORMAT:
        raise InputError(
            f"the run {path} has the format {facts.get('format')!r} but this version reads {FORMAT}; fit again."
        )
    run = Run(path, facts)
    if not run.fit.is_dir() or "settings" not in facts:
        raise InputError(f"the run {path} is damaged, parts of it are missing; fit again.")
    return run


def partial_of(path: Path) -> Path:
    """Where the unfinished state of a run lies."""
    return path.with_name(f"{path.name}.partial")


class RunWriter:
    """Writes one run. `check` refuses what may not be written and writes nothing; then `begin`, `finish`.

    `complete`: with --resume, RUN is there and whole.
    """

    def __init__(self, path: Path, resume: bool, complete: bool) -> None:
        self.path, self.resume, self.complete = path, resume, complete
        self.work = partial_of(path)

    @classmethod
    def check(cls, path: Path, resume: bool = False, overwrite: bool = False) -> RunWriter:
        """Refuse, with InputError, a folder that this fit may not write."""
        if resume and overwrite:
            raise InputError(
                "--resume continues a fit and --overwrite replaces it; give only one of the two."
            )
        outputs.check_new_folder(path, overwrite or resume, MARKER, KIND)
        work = partial_of(path)
        outputs.check_new_folder(work, True, MARKER, KIND)
        unfinished = _state_of(work)
        if resume and not unfinished:
            if outputs.is_empty(path):
                raise InputError(f"there is no fit in {path} to resume; leave out --resume to start one.")
            open_run(path)
        if unfinished and not (resume or overwrite):
            raise InputError(
                f"an unfinished fit of {path} is in {work}; continue it with --resume or start again with "
                "--overwrite."
            )
        return cls(path, resume, complete=resume and not unfinished)

    @property
    def checkpoint(self) -> Path:
        """Folder that the fit keeps its state in, epoch by epoch."""
        return self.work / "checkpoint"

    def match(self, settings: Mapping[str, Any]) -> None:
        """Refuse, with InputError, to resume a fit of other data or settings."""
        if not self.resume:
            return
        facts = outputs.read_marker(self.path if self.complete else self.work, MARKER, KIND) or {}
        before = facts.get("settings", {})
        for name in settings:
            if before.get(name) != settings[name]:
                was, now = _brief(before.get(name)), _brief(settings[name])
                raise InputError(
                    f"the fit in {self.path} began with another setting of {name} ({was}, now {now}); resume "
                    "it with the same, or start again with --overwrite."
                )

    def begin(self, facts: Mapping[str, Any], config: str, held_out: ConditionSummary | None) -> None:
        """Make the partial folder with everything but the fit; when resuming it is there."""
        if self.resume:
            outputs.remove(self.work / "fit")  # cut short while it was written
            return
        outputs.remove(self.work)
        with outputs.staged(self.work) as (folder,):
            folder.mkdir()
            (folder / "config.toml").write_text(config, encoding="utf-8")
            if held_out is not None:
                np.savez_compressed(folder / _HELD_OUT, **held_out.arrays())  # type: ignore[arg-type]
                listed = "".join(f"{name}\n" for name in held_out.conditions)
                (folder / "held_out.txt").write_text(listed, encoding="utf-8")
            outputs.write_marker(folder, MARKER, KIND, {"format": FORMAT, **facts})

    def finish(self) -> None:
        """The partial folder becomes RUN, in place of an older one."""
        for leftover in self.work.glob(f"{self.checkpoint.name}*"):
            outputs.remove(leftover)
        outputs.put(self.work, self.path)

    def give_up(self) -> bool:
        """After a failure: keep a state that can be resumed (True), else remove the partial folder (False)."""
        if _state_of(self.work):
            outputs.remove(self.work / "fit")
            return True
        outputs.remove(self.work)
        return False


def fingerprint(screen: Screen) -> str:
    """A hash of the training cells, so that a fit is resumed on the same ones wherever the file lies now."""
    digest = hashlib.sha256()
    matrix = screen.expression
    for array in (matrix.data, matrix.indices, matrix.indptr, screen.design, screen.condition, screen.batch):
        digest.update(np.ascontiguousarray(array).data)
    for names in (screen.genes.tolist(), screen.conditions, screen.batches):
        digest.update("\n".join(names).encode())
    return digest.hexdigest()[:16]


def _state_of(work: Path) -> bool:
    """Whether a partial folder holds a state after at least one epoch."""
    return any(work.glob("checkpoint*/**/checkpoint.json"))  # also the new one that a kill kept from being renamed


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
