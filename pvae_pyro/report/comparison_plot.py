"""The figure of a comparison: paired differences with intervals, one panel a metric, readable in grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pvae_pyro.evaluation.differences import AIMS, smallest_relevant, title
from pvae_pyro.evaluation.scores import HIGHER_IS_BETTER

_COLUMNS = 3
_SMALL = 8
_LONG = 40  # characters of a method's name beside an axis


@dataclass(frozen=True)
class _Mark:
    """Marker of an outcome: shape and filling say it without colour."""

    marker: str
    colour: str
    filled: bool


_MARKS = {
    "better": _Mark("o", "#12344d", True),
    "worse": _Mark("s", "#c8553d", True),
    "differs": _Mark("D", "#555555", False),
    "no difference beyond noise": _Mark("o", "#777777", False),
    "cannot tell": _Mark("x", "#777777", False),
}


def comparison_figure(table: pd.DataFrame) -> Figure:
    """Difference from the reference and its 95 % interval, per metric, method and stratum.

    table: rows of ``evaluation.differences.difference_table``, of one reference. The zero line is the
    reference; a grey stroke in a panel of coverage is where the nominal level would be. Raises ValueError for
    a table without rows.
    """
    if not len(table):
        raise ValueError("there is no difference to draw")
    metrics = list(dict.fromkeys(table["metric"]))
    lines = list(dict.fromkeys(zip(table["stratum"], table["method"], strict=True)))
    strata = list(dict.fromkeys(table["stratum"]))
    columns = min(_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(
        figsize=(2.5 * columns + 1.6, rows * (1.15 + 0.24 * len(lines)) + 0.9), layout="constrained"
    )
    for index, metric in enumerate(metrics):
        ax = figure.add_subplot(rows, columns, index + 1)
        _panel(ax, table[table["metric"] == metric], metric, lines)
        names = [_label(method, stratum if len(strata) > 1 else "") for stratum, method in lines]
        shown = names if index % columns == 0 else [""] * len(lines)
        ax.set_yticks(range(len(lines)), shown, fontsize=_SMALL, parse_math=False)
    counts = {str(name): int(part["conditions"].max()) for name, part in table.groupby("stratum", sort=False)}
    told = ", ".join(f"{count} x {name}" for name, count in counts.items())
    figure.suptitle(
        f"Difference from {table['reference'].iloc[0]} (zero line), 95 % interval over conditions: {told}",
        fontsize=_SMALL + 1,
        parse_math=False,
    )
    found = [name for name in _MARKS if (table["outcome"] == name).any()]
    handles = [
        figure.axes[0].plot(
            [], [], mark.marker, color=mark.colour, markersize=5, label=name, markerfacecolor=_face(mark)
        )[0]
        for name, mark in _MARKS.items()
        if name in found
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(found), fontsize=_SMALL, frameon=False
    )
    return figure


def _panel(ax: Axes, part: pd.DataFrame, metric: str, lines: list[tuple[str, str]]) -> None:
    ax.axvline(0.0, color="#555555", linewidth=1, linestyle="--", zorder=1)
    keys = zip(part["stratum"], part["method"], strict=True)
    for key, low, high, value, outcome, other in zip(
        keys,
        part["low"],
        part["high"],
        part["difference"],
        part["outcome"],
        part["reference_value"],
        strict=True,
    ):
        height = lines.index(key)
        mark = _MARKS[outcome]
        if metric in AIMS:
            ax.plot(
                AIMS[metric] - other, height, "|", color="#a0a0a0", markersize=13, markeredgewidth=2, zorder=1
            )
        if np.isfinite(low):
            ax.hlines(height, low, high, color=mark.colour, linewidth=1.4, zorder=2)
        ax.plot(
            value, height, mark.marker, color=mark.colour, markersize=5, markerfacecolor=_face(mark), zorder=3
        )
    ax.set_ylim(len(lines) - 0.4, -0.6)  # the first line on top
    low_end, high_end = ax.get_xlim()
    # an axis that shows differences too small to matter as large ones would mislead
    reach = max(
        abs(low_end), abs(high_end), 2 * smallest_relevant(metric, part["reference_value"].abs().max())
    )
    ax.set_xlim(-reach, reach)  # zero in the middle, so that the sides can be told apart at a glance
    ax.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    ax.set_title(title(metric), fontsize=_SMALL + 1)
    ax.set_xlabel(_direction(metric), fontsize=_SMALL)
    ax.tick_params(labelsize=_SMALL - 1)
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _direction(metric: str) -> str:
    """Which way is better, to stand under the axis."""
    if metric in AIMS:
        return f"more covered \u2192   (grey stroke: {AIMS[metric]:.2f})"
    if metric in HIGHER_IS_BETTER:
        return "better \u2192"
    return "\u2190 better"


def _label(method: str, stratum: str) -> str:
    name = f"{method}, {stratum}" if stratum else method
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}\u2026"


def _face(mark: _Mark) -> str:
    return mark.colour if mark.filled else "white"
