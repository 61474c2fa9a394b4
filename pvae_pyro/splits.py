"""Which conditions are trained on and which are held out, and which cells of the former validate the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pvae_pyro.errors import InputError
from pvae_pyro.labels import CONTROL, near, parse_request
from pvae_pyro.reading import read_lines
from pvae_pyro.summary import cells_by_condition, condition_generator

if TYPE_CHECKING:
    from pvae_pyro.screen import Screen


@dataclass(frozen=True)
class Split:
    """A screen cut in two by condition; `held_out` is None where every condition is trained on."""

    train: Screen
    held_out: Screen | None

    def table(self) -> pd.DataFrame:
        """Held-out conditions, one a row, and what training knows of their targets.

        `targets_seen`: how many of the targets occur in any trained condition; `stratum`: the same in words;
        `n_targets`; `as_single` and `in_combination`: which targets are trained alone and in any combination.
        """
        n_trained = (self.train.design != 0).sum(axis=1)
        single = {name for doses in self.train.design[n_trained == 1] for name in _named(doses, self.train)}
        combined = {name for doses in self.train.design[n_trained > 1] for name in _named(doses, self.train)}
        names = ["condition", "n_cells", "targets_seen", "stratum", "n_targets", "as_single"]
        rows = []
        if self.held_out is not None:
            n_cells = self.held_out.condition_table()["n_cells"].tolist()
            for condition, doses, n in zip(
                self.held_out.conditions, self.held_out.design, n_cells, strict=True
            ):
                targets = _named(doses, self.held_out)
                seen = sum(name in single or name in combined for name in targets)
                alone = ",".join(name for name in targets if name in single)
                joined = ",".join(name for name in targets if name in combined)
                rows.append((condition, n, seen, _stratum(seen, len(targets)), len(targets), alone, joined))
        return pd.DataFrame(rows, columns=[*names, "in_combination"])

    def describe(self) -> str:
        """What is trained on, what is held out, and the table, as text to print."""
        n_targets = (self.train.design != 0).sum(axis=1)
        kinds = ((n_targets == 0, "control"), (n_targets == 1, "single"), (n_targets > 1, "combination"))
        parts = [
            f"{int(which.sum())} {kind}{'' if which.sum() == 1 else 's'}"
            for which, kind in kinds
            if which.any()
        ]
        text = f"Training on {self.train.n_cells} cells of {len(self.train.conditions)} conditions"
        text += f" ({', '.join(parts)})."
        if self.held_out is None:
            return f"{text}\nNothing is held out."
        table = self.table()
        strata = ", ".join(
            f"{n} {stratum}" for stratum, n in table["stratum"].value_counts(sort=False).items()
        )
        text += f"\nHeld out: {self.held_out.n_cells} cells of {len(table)} conditions (targets: {strata})."
        return f"{text}\n{table.to_string(index=False)}"


def _named(doses: np.ndarray, screen: Screen) -> list[str]:
    """Targets with a dose in one row of a screen's design."""
    return [screen.targets[place] for place in np.flatnonzero(doses)]


def _stratum(seen: int, of: int) -> str:
    if of == 0:
        return "control"
    if of == 1:
        return "seen" if seen else "unseen"
    every = "both" if of == 2 else "all"
    if seen in (0, of):
        return f"{every} {'seen' if seen else 'unseen'}"
    return "one unseen" if seen == of - 1 else f"{of - seen} of {of} unseen"


def split_screen(
    screen: Screen,
    train: str | Sequence[str] = "all",
    hold_out: Sequence[str] = (),
    fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """Cut a screen by condition; training gets, bit for bit, what a file without the other cells would give.

    `train`: "all" conditions, "singles" (control and single targets) or names (control is added); names of
    `hold_out` are never trained on, whatever `train` says; `fraction` of the combinations left is held out
    at random. Names in any convention. Raises InputError for unknown names, when control is held out, or
    when no perturbation is left to train on.
    """
    n_targets = dict(zip(screen.conditions, (screen.design != 0).sum(axis=1).tolist(), strict=True))
    if CONTROL not in n_targets:
        raise InputError("the screen has no control cells, so it cannot be trained on; add control cells.")
    if isinstance(train, str):
        if train not in ("all", "singles"):
            raise InputError(f"train is {train!r}; it is 'all', 'singles' or a list of conditions.")
        trained = {name for name, n in n_targets.items() if train == "all" or n <= 1}
    else:
        trained = {CONTROL, *_present(train, screen, "train on")}
    gone = set(_present(hold_out, screen, "hold out"))
    if CONTROL in gone:
        raise InputError(
            "control is among the conditions to hold out; training needs it, take it off the list."
        )
    trained -= gone
    if fraction is not None:
        combinations = [name for name in trained if n_targets[name] > 1]
        trained -= set(_random_combinations(combinations, float(fraction), seed))
    if trained == {CONTROL}:
        raise InputError("no perturbation is left to train on; hold out fewer conditions.")
    held_out = [name for name in screen.conditions if name not in trained]
    return Split(screen.restrict(sorted(trained)), screen.restrict(held_out) if held_out else None)


def _random_combinations(combinations: Sequence[str], fraction: float, seed: int) -> list[str]:
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"the fraction to hold out is {fraction!r}; give a number above 0 and up to 1.")
    if not combinations:
        raise InputError("there is no combination to hold out a fraction of; leave the fraction out.")
    names = sorted(combinations)
    chosen = np.random.default_rng(seed).permutation(len(names))[: max(1, round(fraction * len(names)))]
    return [names[place] for place in chosen]


def _present(names: Sequence[str], screen: Screen, purpose: str) -> list[str]:
    asked = parse_request([names] if isinstance(names, str) else names, screen.targets)
    for name in asked:
        if name not in screen.conditions:
            raise InputError(
                f"the condition {name!r} to {purpose} has no cells in the data "
                f"({near(name, screen.conditions)}); take it off the list or correct it."
            )
    return asked


def read_conditions(path: str | Path) -> list[str]:
    """Conditions listed in a text file, one a line; empty lines and lines that begin with "#" do not count.

    Raises InputError for a file that is missing, no text, or lists nothing.
    """
    return read_lines(path, "conditions")


def validation_slice(screen: Screen, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells to train on and cells to validate on, sorted int64 indices, drawn within each condition.

    `fraction` of each condition's cells validates; fractions of a cell are rounded at random, so that the
    share is right on average in small conditions, too, and at least one cell of each condition trains.
    A condition's draw does not depend on what else is in the screen.
    """
    if not 0.0 <= fraction < 1.0:
        raise InputError(
            f"the share of cells to validate on is {fraction!r}; give a number from 0 up to but not 1."
        )
    validates = np.zeros(screen.n_cells, dtype=bool)
    for name, cells in zip(screen.conditions, cells_by_condition(screen), strict=True):
        generator = condition_generator(name, seed, "validation")
        share = min(int(fraction * len(cells) + generator.random()), len(cells) - 1)
        validates[cells[generator.permutation(len(cells))[:share]]] = True
    return np.flatnonzero(~validates).astype(np.int64), np.flatnonzero(validates).astype(np.int64)
