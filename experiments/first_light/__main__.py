"""python -m experiments.first_light [--arm NAME] [--seed N] [--smoke] [--out DIR]: run what results.csv does not hold yet."""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

import pandas as pd

from pvae_pyro.inference.versions import versions

from .arms import arms

HERE = Path(__file__).parent
COLUMNS = ["arm", "what", "metric", "seed", "value", "seconds", "date", "torch"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.first_light", description=__doc__)
    parser.add_argument("--arm", help="run this arm only, even if it is in the results")
    parser.add_argument(
        "--seed", type=int, help="run this seed only (default: 0, 1, 2 for the default arm, 0 for the others)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="the small real screen only, nothing written: is the code whole?"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.csv")
    options = parser.parse_args()
    known = arms(options.smoke)
    if options.arm is not None and options.arm not in known:
        parser.error(f"unknown arm {options.arm!r}; choose one of {', '.join(known)}")
    if options.smoke:
        print(
            pd.DataFrame(known["norman-cells-gaussian"](0), columns=["what", "metric", "value"]).to_string(
                index=False
            )
        )
        return
    path = options.out / "results.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)
    for arm in [options.arm] if options.arm else list(known):
        for seed in [options.seed] if options.seed is not None else ([0, 1, 2] if arm == "default" else [0]):
            mine = (done["arm"] == arm) & (done["seed"] == seed)
            if mine.any() and options.arm is None:
                continue
            print(f"{arm}, seed {seed}", flush=True)
            begun = time.perf_counter()
            rows = known[arm](seed)
            seconds = round(time.perf_counter() - begun)
            new = pd.DataFrame(
                [
                    (
                        arm,
                        what,
                        metric,
                        seed,
                        round(value, 5),
                        seconds,
                        date.today().isoformat(),
                        versions()["torch"],
                    )
                    for what, metric, value in rows
                ],
                columns=COLUMNS,
            )
            done = pd.concat([done[~mine], new], ignore_index=True) if len(done) else new
            options.out.mkdir(parents=True, exist_ok=True)
            done.to_csv(path, index=False)  # after every arm: an interrupted run goes on where it was
            shown = new[new["what"].str.startswith("model")].pivot(
                index="what", columns="metric", values="value"
            )
            print(shown.round(4).to_string(), f"\n{seconds} s", flush=True)


if __name__ == "__main__":
    main()
