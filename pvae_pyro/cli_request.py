"""What a user asks to be predicted: conditions, and pseudobulks of how many cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from pvae_pyro.errors import InputError
from pvae_pyro.labels import canonical, listing, parse_request
from pvae_pyro.screen import read_conditions


def check_one_source(text: str | None, file: Path | None, pairs: bool) -> None:
    """Refuse, with InputError, anything but exactly one way to say what to predict."""
    given = [text is not None, file is not None, pairs]
    if sum(given) != 1:
        found = "none of them" if not any(given) else f"{sum(given)} of them"
        raise InputError(
            f"what to predict is said by --conditions, --conditions-file or --all-pairs, but {found} was given; "
            "give one."
        )


def conditions(text: str | None, file: Path | None, known: Sequence[str]) -> list[str]:
    """Canonical conditions in the order asked, of a text with commas between them or a file of lines.

    Nothing where neither is given. Raises InputError for unknown targets and repeated conditions.
    """
    if text is None and file is None:
        return []
    names = text.split(",") if text is not None else read_conditions(file or "")
    return parse_request(names, known)


def all_pairs(targets: Sequence[str]) -> list[str]:
    """Every pair of targets; InputError where there is none."""
    if len(targets) < 2:
        raise InputError(f"the run has {len(targets)} trained target, which makes no pair; use --conditions.")
    return [canonical(pair) for pair in combinations(sorted(targets), 2)]


def cell_numbers(number: int | None, file: Path | None, known: Sequence[str]) -> int | dict[str, int] | None:
    """Cells of each pseudobulk: one number for all, by canonical condition from a CSV, or None for defaults.

    Raises InputError for numbers below 1 and a file without the columns condition and n_cells.
    """
    if file is None:
        if number is not None and number < 1:
            raise InputError(f"the number of cells is {number}; give 1 or more.")
        return number
    if number is not None:
        raise InputError("--n-cells and --n-cells-file say the same thing; give one of them.")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as problem:
        raise InputError(
            f"the numbers of cells {str(file)!r} cannot be read ({type(problem).__name__}); give a CSV with "
            "the columns condition,n_cells."
        ) from None
    if absent := {"condition", "n_cells"} - set(table.columns):
        raise InputError(
            f"{file} has no column {sorted(absent)[0]!r}, its columns are {listing(table.columns)}; give a CSV "
            "with the columns condition,n_cells."
        )
    names = parse_request(table["condition"], known)
    sizes = {}
    for name, written in zip(names, table["n_cells"], strict=True):
        if not written.strip().isdecimal() or int(written) < 1:
            raise InputError(f"{file} says {written!r} cells for {name!r}; give a whole number of 1 or more.")
        sizes[name] = int(written)
    return sizes
