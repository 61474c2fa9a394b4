"""The page of swaps knows every part, by name, class and setting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pvae_pyro.evaluation.legacy import LEGACY
from pvae_pyro.evaluation.panel import FURTHER
from pvae_pyro.evaluation.scores import COVERAGES, METRICS
from pvae_pyro.guides import GUIDES
from pvae_pyro.story import PARTS

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "swaps.md").read_text(encoding="utf-8")
EVERY = [(kind, name, cls) for kind, named in (PARTS | {"guide": GUIDES}).items() for name, cls in named.items()]


@pytest.mark.parametrize(("kind", "name", "cls"), EVERY, ids=[f"{kind}-{name}" for kind, name, _ in EVERY])
def test_every_part_has_a_row_with_its_settings(kind: str, name: str, cls: type) -> None:
    rows = [line for line in PAGE.splitlines() if f"| `{name}` | `{cls.__name__}` |" in line]
    assert len(rows) == 1
    for field in dataclasses.fields(cls):
        assert f"`{field.name}`" in rows[0], f"{field.name} of {name}"


SCORES = (Path(__file__).resolve().parents[1] / "docs" / "scores.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", [one for one in (*METRICS, *FURTHER, *LEGACY) if one not in COVERAGES[1:]])
def test_every_metric_is_on_the_page_of_scores(metric: str) -> None:
    assert f"`{metric}`" in SCORES
