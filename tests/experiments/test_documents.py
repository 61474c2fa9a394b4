"""Tables of the documents are those that results.csv makes: a number changed by hand or left behind shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from experiments.calibration import publish as calibration
from experiments.filling import filled
from experiments.first_light import publish as first_light
from experiments.inclusion import publish as inclusion
from experiments.penetrance import publish as penetrance
from experiments.ppc import publish as ppc
from experiments.probe import publish as probe
from experiments.programs import publish as programs
from experiments.sbc import publish as sbc
from experiments.swap import publish as swap
from experiments.worlds import publish as worlds

ROOT = Path(__file__).resolve().parents[2]
Tables = Callable[[Path], Mapping[str, str]]
MADE: dict[str, Tables] = {
    "calibration": lambda csv: calibration.tables(pd.read_csv(csv)),
    "first_light": lambda csv: {name: made(first_light.Results(csv)) for name, made in first_light.TABLES.items()},
    "inclusion": lambda csv: {"rates": inclusion.table(pd.read_csv(csv))},
    "penetrance": lambda csv: {"found": penetrance.table(pd.read_csv(csv))},
    "ppc": lambda csv: {screen: ppc.table(pd.read_csv(csv), screen) for screen in ppc.SCREENS},
    "probe": lambda csv: {screen: probe.table(probe.Results(csv), screen) for screen in probe.SCREENS},
    "programs": lambda csv: programs.tables(programs.Results(csv)),
    "sbc": lambda csv: {"ranks": sbc.table(sbc.judged(pd.read_csv(csv))), "coverage": sbc.covered(pd.read_csv(csv))},
    "swap": lambda csv: swap.tables(swap.Results(csv)),
    "worlds": lambda csv: {world: worlds.table(pd.read_csv(csv), world) for world in worlds.WORLDS},
}


@pytest.mark.parametrize("name", MADE)
def test_tables_are_their_results(name: str) -> None:
    made = MADE[name](ROOT / "experiments" / name / "results.csv")
    held: set[str] = set()
    for path in (ROOT / "README.md", ROOT / "experiments" / "README.md", ROOT / "experiments" / name / "README.md"):
        text = path.read_text(encoding="utf-8")
        held |= set(re.findall(rf"<!-- {name}: ([\w-]+) -->", text))
        assert filled(text, name, made) == text, f"run python -m experiments.{name}.publish ({path.relative_to(ROOT)})"
    assert held == set(made)
