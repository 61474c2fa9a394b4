"""The Norman protocol. Results that are not in results.csv yet are run; `--data FILE` runs it on a file of yours.

python -m experiments.norman [--smoke] [--arm NAME] [--seed N] [--out DIR] [--data FILE [--key COLUMN]]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from pvae_pyro.datasets import norman2019
from pvae_pyro.errors import InputError

from .. import run_arms
from .arms import arms, seeds_of
from .protocol import prepare
from .publish import publish

HERE = Path(__file__).parent
SOURCE = "data.txt"  # beside results of a user's file: its path


def main() -> None:
    mine = argparse.ArgumentParser(add_help=False)
    mine.add_argument("--data", type=Path, help="the full screen as h5ad, any layout of pvae_pyro.datasets.norman2019")
    mine.add_argument("--key", help="its column of labels (default: guide_ids, perturbation or condition)")
    own = argparse.ArgumentParser(add_help=False, parents=[mine])
    own.add_argument("--out")
    own.add_argument("--smoke", action="store_true")
    given, _ = own.parse_known_args()
    if given.key is not None and given.data is None:
        raise InputError("--key names a column of the file that --data gives; give both.")
    known, here = arms, HERE
    if given.data is not None:
        here = Path("norman_full")
        known = partial(arms, data=given.data, key=given.key)
        out = Path(given.out or here)
        _one_file(given.data, out)
        _told(given.data, given.key)
        if not given.smoke:
            out.mkdir(parents=True, exist_ok=True)
            (out / SOURCE).write_text(f"{given.data.resolve()}\n", encoding="utf-8")
    smoke = "simulated" if given.data is None else "full default"
    written = run_arms.main("experiments.norman", __doc__, here, known, smoke, seeds_of, parents=(mine,))
    if written is not None and written != HERE:
        publish(written)
        print(f"Tables and figure: {written / 'tables.md'}, {written / 'scores.png'}")


def _told(data: Path, key: str | None) -> None:
    """Print what the checks of a file find, and forget it: a full screen takes gigabytes."""
    screen = norman2019(data, key=key)
    print(*screen.notices, sep="\n")
    for what, found, expected in prepare(screen).checks:
        print(f"  {what}: {found:g}" + (f" ({expected})" if expected else ""))


def _one_file(data: Path, out: Path) -> None:
    """Raises InputError for a folder that holds results of another file, with which these would be mixed."""
    note = out / SOURCE
    if note.exists() and (other := note.read_text(encoding="utf-8").strip()) != str(data.resolve()):
        raise InputError(f"{out} holds results of another file, {other}; name another folder (--out).")
    if out.resolve() == HERE:
        raise InputError(f"{out} holds the committed results; name another folder (--out).")


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(2)
