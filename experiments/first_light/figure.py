"""python -m experiments.first_light.figure [--out DIR]: the figure of README.md, from one default fit (seed 0, two minutes)."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pvae_pyro as pv
from pvae_pyro.evaluation.scores import parity

from .arms import DATA, DRAWS

HERE = Path(__file__).parent
NAME = "shifts.png"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.first_light.figure", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help=f"folder of {NAME}")
    out = parser.parse_args().out
    screen = pv.Screen.from_anndata(DATA / "norman_semisynthetic.h5ad", "guide_ids", batch_key="gemgroup")
    split = pv.split_screen(screen, "singles")
    assert split.held_out is not None
    odd = [name for name in split.held_out.conditions if parity(name) == "odd"]
    fit = pv.fit(pv.PerturbedVAE(), split.train, seed=0)
    with TemporaryDirectory() as folder:
        report = pv.evaluate_run(
            fit,
            split.held_out.restrict(odd).summary(),
            Path(folder) / "report",
            draws=DRAWS,
            data_note="semi-synthetic Norman screen, odd doubles",
        )
        print(report.read_text(encoding="utf-8"))
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(report.with_name(NAME), out / NAME)


if __name__ == "__main__":
    main()
