"""The split of the protocol, the checks of a file, and the numbers that public files and the paper give."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pvae_pyro as pv
from pvae_pyro.labels import listing
from pvae_pyro.screen import CONTROL

CONFIG: dict[str, Any] = tomllib.loads((Path(__file__).parent / "config.toml").read_text(encoding="utf-8"))
HELD_OUT: tuple[str, ...] = tuple(CONFIG["protocol"]["held_out"])
BATCH: int = CONFIG["protocol"]["batch"]

# what, by file: the paper's text, the protocol's file (CPA), scPerturb's; None: not stated
EXPECTED: dict[str, tuple[int | None, int | None, int | None]] = {
    "cells": (105_528, 108_497, 111_445),
    "genes": (5_000, 5_000, 33_694),
    "singles": (105, 105, 105),
    "doubles": (131, 131, 131),
}
LARGEST_LOG = float(np.log1p(1e4))  # of log1p of counts per 10,000
TOO_LARGE = 20.0  # no log of normalised counts comes near


@dataclass(frozen=True, eq=False)
class Task:
    """What the protocol trains on and tests on.

    train: all controls and singles but the held-out cells. test: the held-out cells of singles, and all doubles.
    sets: conditions of the test by name; those of one name are averaged. checks: (what, found, expected in words).
    """

    train: pv.Screen
    test: pv.Screen
    sets: dict[str, list[str]]
    checks: list[tuple[str, float, str]]


def held_out_cells(n: int) -> int:
    """How many cells of a single with n cells are held out: 96, or whole batches up to half of a small condition."""
    return min(int(CONFIG["protocol"]["cells"]), n // 2 // BATCH * BATCH)


def chosen_singles(screen: pv.Screen) -> list[str]:
    """The protocol's 14 singles that the file has; where it has none, as many with the most cells."""
    singles = [c for c in screen.conditions if c != CONTROL and "+" not in c]
    counts = dict(zip(screen.conditions, np.bincount(screen.condition).tolist(), strict=True))
    named = [name for name in HELD_OUT if name in counts]
    largest = sorted(singles, key=lambda name: (-counts[name], name))[: len(HELD_OUT)]
    return [name for name in (named or largest) if held_out_cells(counts[name])]


def prepare(screen: pv.Screen) -> Task:
    """Check a screen and cut it as the protocol does. Raises InputError for one that the protocol cannot be run on."""
    checks = checked(screen)
    doubles = [c for c in screen.conditions if c.count("+") == 1]
    singles = chosen_singles(screen)
    if not doubles or not singles:
        missing = "double" if not doubles else f"single with {2 * BATCH} cells or more, of which {BATCH} could be held out"
        raise pv.InputError(
            f"the protocol cannot be run on this file: it has no {missing} (its conditions: {listing(screen.conditions, 6)}); "
            "give the file of the whole screen."
        )
    of_cell = np.asarray(screen.conditions)[screen.condition]
    tested = np.isin(of_cell, doubles)
    for name in singles:
        own = np.flatnonzero(of_cell == name)
        tested[own[: held_out_cells(len(own))]] = True
    kept = ~tested & np.isin(screen.condition, [i for i, c in enumerate(screen.conditions) if c.count("+") == 0])
    train = screen.cells(kept)
    train = train.select_genes(train.choose_genes(int(CONFIG["protocol"]["genes"])))
    test = screen.cells(tested).select_genes(train.genes)
    known = [name for name in doubles if set(name.split("+")) <= set(train.targets)]
    sets = {"singles": singles, "doubles": known, "odd doubles": [c for c in known if parity(c) == "odd"]}
    if len(known) < len(doubles):
        sets["all doubles"] = doubles
    n = dict(zip(test.conditions, np.bincount(test.condition).tolist(), strict=True))
    checks += [
        ("singles held out", len(singles), str(len(HELD_OUT))),
        ("cells held out of singles", sum(n[name] for name in singles), str(len(HELD_OUT) * CONFIG["protocol"]["cells"])),
        ("doubles of two trained singles", len(known), "paper tests 112 doubles, rule unknown"),
        (f"doubles of {BATCH} cells or more", sum(n[name] >= BATCH for name in doubles), ""),
        (f"doubles of {2 * BATCH} cells or more", sum(n[name] >= 2 * BATCH for name in doubles), ""),
        ("genes used", train.n_genes, "5000"),
    ]
    return Task(train, test, sets, checks)


def parity(name: str) -> str:
    """Tuning ("even") or reporting ("odd"), the cut that every experiment here keeps to."""
    from pvae_pyro.evaluation.scores import parity as of

    return of(name)


def checked(screen: pv.Screen) -> list[tuple[str, float, str]]:
    """What the file holds beside what public ones hold; InputError where its scale is none of log counts."""
    sizes = [0 if c == CONTROL else c.count("+") + 1 for c in screen.conditions]
    largest = float(screen.expression.data.max()) if screen.expression.nnz else 0.0
    if largest > TOO_LARGE:
        raise pv.InputError(
            f"the largest value of the file is {largest:.4g}, although log1p of counts per 10,000 ends at {LARGEST_LOG:.2f}; "
            "give raw counts or their log, not values on another scale."
        )
    found = {"cells": screen.n_cells, "genes": screen.n_genes, "singles": sizes.count(1), "doubles": sizes.count(2)}
    rows: list[tuple[str, float, str]] = [(what, n, _expectation(EXPECTED[what])) for what, n in found.items()]
    control = int(np.bincount(screen.condition)[sizes.index(0)])
    scale = f"{screen.scale}; log1p of counts per 10,000 ends at {LARGEST_LOG:.2f}"
    return [*rows, ("control cells", control, ""), ("largest log expression", round(largest, 3), scale)]


def _expectation(numbers: Sequence[int | None]) -> str:
    names = ("paper", "CPA's file", "scPerturb's file")
    return ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
