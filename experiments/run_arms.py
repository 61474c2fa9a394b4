"""What experiments share: arms run one by one, each appended to results.csv, so that an interrupted run goes on where it was."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from pvae_pyro.errors import InputError
from pvae_pyro.inference.versions import versions

COLUMNS = ["arm", "what", "metric", "seed", "value", "seconds", "date", "torch"]
Rows = list[tuple[str, str, float]]  # (what is measured, metric, value)
Arms = Mapping[str, Callable[[int], Rows]]


def main(module: str, description: str | None, here: Path, arms: Callable[[bool], Arms], smoke_arm: str,
         seeds: Callable[[str], Sequence[int]] = lambda arm: (0,),
         parents: Sequence[argparse.ArgumentParser] = ()) -> Path | None:  # fmt: skip
    """Command line of one experiment: `arms(smoke)` by name, `smoke_arm` the one that --smoke runs, `seeds` of an arm.

    `parents`: options of its own. Returns the folder of results.csv; None after --smoke, which writes nothing.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description, parents=list(parents))
    parser.add_argument("--arm", help="run this arm only, even if it is in the results")
    parser.add_argument("--seed", type=int, help="run this seed only (default: those of the experiment)")
    parser.add_argument("--smoke", action="store_true", help="one short arm, nothing written: is the code whole?")
    parser.add_argument("--out", type=Path, default=here, help="folder of results.csv")
    options = parser.parse_args()
    known = arms(options.smoke)

    def run(arm: str, seed: int) -> Rows:
        try:
            return known[arm](seed)
        except (InputError, FileNotFoundError) as error:
            parser.exit(2, f"{parser.prog}: {error} (data are read from ../shared/data, or the folder that PVAE_DATA names)\n")

    if options.arm is not None and options.arm not in known:
        parser.error(f"unknown arm {options.arm!r}; choose one of {', '.join(known)}")
    if options.smoke:
        rows = run(options.arm or smoke_arm, 0)
        print(pd.DataFrame(rows, columns=["what", "metric", "value"]).to_string(index=False))
        return None
    path = options.out / "results.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    for arm in [options.arm] if options.arm else list(known):
        for seed in [options.seed] if options.seed is not None else seeds(arm):
            mine = (done["arm"] == arm) & (done["seed"] == seed)
            if mine.any() and options.arm is None:
                continue
            print(f"{arm}, seed {seed}", flush=True)
            begun = time.perf_counter()
            rows = run(arm, seed)
            rest = (round(time.perf_counter() - begun), date.today().isoformat(), versions()["torch"])
            new = pd.DataFrame([(arm, what, m, seed, round(v, 5), *rest) for what, m, v in rows], columns=COLUMNS)
            done = pd.concat([done[~mine], new], ignore_index=True) if len(done) else new
            options.out.mkdir(parents=True, exist_ok=True)
            done.to_csv(path, index=False)
            shown = new.pivot(index="metric", columns="what", values="value").round(4)
            print((shown if shown.shape[1] <= shown.shape[0] else shown.T).to_string(), flush=True)
    return Path(options.out)
