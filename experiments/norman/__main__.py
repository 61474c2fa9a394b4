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


def main() -> None:
    mine = argparse.ArgumentParser(add_help=False)
    mine.add_argument("--data", type=Path, help="the full screen as h5ad, any layout of pvae_pyro.datasets.norman2019")
    mine.add_argument("--key", help="its column of labels (default: guide_ids, perturbation or condition)")
    given, _ = mine.parse_known_args()
    if given.key is not None and given.data is None:
        raise InputError("--key names a column of the file that --data gives; give both.")
    known, here = arms, HERE
    if given.data is not None:
        here = Path("norman_full")
        known = partial(arms, data=given.data, key=given.key)
        screen = norman2019(given.data, key=given.key)
        print(*screen.notices, sep="\n")
        for what, found, expected in prepare(screen).checks:
            print(f"  {what}: {found:g}" + (f" ({expected})" if expected else ""))
    smoke = "simulated" if given.data is None else "full default"
    out = run_arms.main("experiments.norman", __doc__, here, known, smoke, seeds_of, parents=(mine,))
    if out is not None and (given.data is not None or out != HERE):
        publish(out)
        print(f"Tables and figure: {out / 'tables.md'}, {out / 'scores.png'}")


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(2)
