"""How the tests of the command line run a command and read what it did."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from pvae_pyro.cli import app

PAIRS = ("T01+T02", "T02+T03", "T03+T04", "T03+T06", "T05+T06")


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str


def run(*arguments: object) -> Outcome:
    """Run one command of pvae-pyro in this process; an error that is no refusal is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def done(*arguments: object) -> Outcome:
    """Run one command that must succeed without a word on standard error."""
    outcome = run(*arguments)
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    return outcome


def refused(*arguments: object, status: int = 2) -> str:
    """Run one command that must be refused; the sentence on standard error, which must be one sentence."""
    outcome = run(*arguments)
    assert outcome.status == status, outcome.out + outcome.err
    assert outcome.err.endswith("\n")
    sentence = outcome.err.removesuffix("\n")
    assert sentence.startswith("Error: ")
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert not re.search(r"[.!?] +[A-Z]", sentence), f"more than one sentence: {sentence}"
    assert "Traceback" not in outcome.out
    return sentence


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with hidden files, as relative names and bytes (None for a folder)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def fit_options(config_file: Path) -> list[object]:
    """How the tests fit."""
    return [
        "--perturbation-key",
        "condition",
        "--batch-key",
        "batch",
        "--train",
        "singles",
        "--config",
        config_file,
        "--device",
        "cpu",
    ]
