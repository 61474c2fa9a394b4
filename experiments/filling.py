"""Tables of a README between their markers `<!-- EXPERIMENT: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

NOT_RUN = "*Not run yet.*"


def fill(readme: Path, experiment: str, tables: Mapping[str, str]) -> None:
    """Put every table where its marker stands; KeyError for a marker without a table."""
    readme.write_text(filled(readme.read_text(encoding="utf-8"), experiment, tables), encoding="utf-8")


def filled(text: str, experiment: str, tables: Mapping[str, str]) -> str:
    """The text with every table where its marker stands; KeyError for a marker without a table."""
    pattern = re.compile(rf"(<!-- {experiment}: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda at: f"{at[1]}{tables[at[2]]}\n{at[3]}", text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its cells as they are."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
