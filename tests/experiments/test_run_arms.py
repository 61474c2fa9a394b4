"""What experiments share: arms are run once, an interrupted run goes on, and bad input ends in a sentence."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from experiments import run_arms
from pvae_pyro.errors import InputError


def test_runs_what_is_missing_and_refuses_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def arm(name: str, seed: int) -> run_arms.Rows:
        asked.append((name, seed))
        if name == "b" and len(asked) < 4:
            raise InputError("the file 'x.h5ad' does not exist.")
        return [("it", "l2", seed + 0.5)]

    def run(*options: str) -> None:
        monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path), *options])
        known = {name: lambda seed, name=name: arm(name, seed) for name in "ab"}
        run_arms.main("experiments.x", "", tmp_path, lambda smoke: known, "a", lambda name: (0, 1) if name == "a" else (0,))

    with pytest.raises(SystemExit) as stopped:
        run()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "x.h5ad" in said and "PVAE_DATA" in said
    assert asked == [("a", 0), ("a", 1), ("b", 0)]
    run()
    assert asked[3:] == [("b", 0)]  # what had run is kept
    run("--arm", "a", "--seed", "1")
    assert asked[4:] == [("a", 1)]
    table = pd.read_csv(tmp_path / "results.csv")
    assert sorted(zip(table["arm"], table["seed"], table["value"], strict=True)) == [("a", 0, 0.5), ("a", 1, 1.5), ("b", 0, 0.5)]
