"""Figures of a report, drawn off screen and readable in grey; every function takes plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Array = NDArray[np.float64]

DPI = 110
_COLOURS = 64
_SMALL = 8
_LEAK = 0.1  # the leakage axis reaches at least this far
_LONG = 36  # characters of a condition's name beside an axis
_LABELLED = 90  # conditions whose names still fit beside an axis
_WITH_INTERVALS = 1000  # genes whose intervals can still be told apart


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of one method; luminance, shape and dashes differ, so that grey is enough."""

    colour: str
    marker: str
    line: str
    filled: bool = True


STYLES = (
    Style("#111111", "o", "-"),
    Style("#c8553d", "s", "--", filled=False),
    Style("#3a7ca5", "^", "-.", filled=False),
    Style("#e0a030", "D", ":"),
)
_FLOOR = "#8a8a8a"


@dataclass(frozen=True, eq=False)
class ShiftPanel:
    """One condition: measured and predicted shift from control with interval ends, (G,) each, and a title."""

    title: str
    measured: Array
    predicted: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class CoverageCurve:
    """Observed coverage at the nominal levels (L,), with the ends of its bootstrap band."""

    name: str
    observed: Array
    low: Array
    high: Array


def shift_figure(panels: Sequence[ShiftPanel], unit: str) -> Figure:
    """Predicted against measured shift, a point and a 90 % interval per gene, one panel a condition.

    Above 1,000 genes only those with the largest predicted or measured shift get an interval.
    """
    figure, axes = new_figure(3.7 * len(panels) + 0.4, 4.3, len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        reach = np.maximum(np.abs(panel.measured), np.abs(panel.predicted))
        shown = np.argsort(-reach, kind="stable")[:_WITH_INTERVALS]
        ends = np.concatenate([panel.measured, panel.predicted, panel.low[shown], panel.high[shown], [0.0]])
        margin = 0.04 * max(float(ends.max() - ends.min()), 1e-6)
        limits = (float(ends.min()) - margin, float(ends.max()) + margin)
        ax.plot(limits, limits, color="#555555", linewidth=1, linestyle="--", zorder=1, label="identity")
        ax.vlines(
            panel.measured[shown],
            panel.low[shown],
            panel.high[shown],
            color="#b9c9d6",
            linewidth=0.8,
            zorder=2,
            label="90 % interval",
        )
        ax.plot(
            panel.measured, panel.predicted, "o", color="#12344d", markersize=2.2, zorder=3, label="one gene"
        )
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ticks = np.asarray(MaxNLocator(6).tick_values(*limits), dtype=float)
        ticks = ticks[(ticks >= limits[0]) & (ticks <= limits[1])]
        ax.set(xticks=ticks, yticks=ticks)
        ax.set_title(panel.title, fontsize=_SMALL + 1, parse_math=False)
        ax.set_xlabel("measured")
    axes[0].set_ylabel("predicted")
    axes[0].legend(fontsize=_SMALL - 1, loc="upper left", frameon=False)
    figure.supxlabel(f"both axes: {unit}", fontsize=_SMALL + 1)
    return figure


def error_figure(
    errors: pd.DataFrame,
    strata: Sequence[str],
    floor: ArrayLike | None,
    unit: str = "L2 to the measured mean",
) -> Figure:
    """Error of every condition as a dot plot, ordered by the first method within each stratum.

    errors: conditions x methods, the first column the model; strata: stratum of each condition, in blocks;
    floor: what a perfect prediction would get, (conditions,), nan where unknown. At most four methods.
    """
    table = errors.copy()
    table["_stratum"] = list(strata)
    table["_floor"] = np.nan if floor is None else np.asarray(floor, float)
    blocks = list(dict.fromkeys(strata))
    table["_block"] = [blocks.index(name) for name in strata]
    first = errors.columns[0]
    table = table.sort_values(["_block", first], ascending=[True, False], kind="stable")
    count = len(table)
    labelled = count <= _LABELLED
    figure, (ax,) = new_figure(7.4, 1.5 + min(0.17 * count, 0.15 * _LABELLED), 1)
    rows = np.arange(count)[::-1]
    ax.hlines(rows, 0, 1, transform=ax.get_yaxis_transform(), color="#eeeeee", linewidth=0.6, zorder=0)
    if floor is not None and np.isfinite(table["_floor"]).any():
        ax.plot(table["_floor"], rows, "|", color=_FLOOR, markersize=5, label="floor: perfect prediction")
    # the model last, on top
    for method, style in reversed(list(zip(errors.columns, STYLES, strict=False))):
        ax.plot(
            table[method],
            rows,
            style.marker,
            color=style.colour,
            # hollow ones larger, so that they still show around the model's dot
            markersize=(4.0 if style.filled else 5.5) * (1.0 if labelled else 0.6),
            markerfacecolor=style.colour if style.filled else "none",
            label=method,
        )
    for block in np.flatnonzero(np.diff(table["_block"])):
        ax.axhline(rows[block] - 0.5, color="#555555", linewidth=0.8)
    if len(blocks) > 1:
        for index, name in enumerate(blocks):
            middle = float(rows[np.flatnonzero(table["_block"] == index)].mean())
            ax.text(1.01, middle, name, transform=ax.get_yaxis_transform(), fontsize=_SMALL, va="center")
    if labelled:
        names = [
            name if len(name) <= _LONG else f"{name[: _LONG - 1]}\u2026" for name in map(str, table.index)
        ]
        ax.set_yticks(rows, names, fontsize=_SMALL - 1.5, parse_math=False)
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{count} conditions")
    ax.set_ylim(-0.7, count - 0.3)
    ax.set_xlim(left=0)
    ax.set_xlabel(unit)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper left", ncols=2, fontsize=_SMALL, frameon=False
    )
    return figure


def coverage_figure(levels: ArrayLike, curves: Sequence[CoverageCurve], subject: str) -> Figure:
    """Observed against nominal coverage of central intervals, with a 95 % bootstrap band each."""
    nominal = np.asarray(levels, float)
    figure, (ax,) = new_figure(4.8, 5.2, 1)
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=(0, (1, 1)), label="calibrated")
    for curve, style in zip(curves, STYLES, strict=False):
        ax.fill_between(nominal, curve.low, curve.high, facecolor=style.colour, alpha=0.2, linewidth=0)
        ax.plot(
            nominal,
            curve.observed,
            color=style.colour,
            linestyle=style.line,
            linewidth=1.4,
            marker=style.marker,
            markersize=4,
            markerfacecolor=style.colour if style.filled else "white",
            label=curve.name,
        )
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xlabel("nominal coverage of the central interval")
    ax.set_ylabel("share of measured values inside")
    ax.set_title(subject, fontsize=_SMALL + 1)
    figure.legend(loc="outside lower center", fontsize=_SMALL, frameon=False)
    return figure


def history_figure(history: Mapping[str, Sequence[float]]) -> Figure:
    """Loss and effect leakage per epoch; what was not recorded is left out and said."""
    figure, (left, right) = new_figure(8.6, 3.6, 2)
    _series(left, history, {"loss": "training", "held_out_loss": "held-out cells"}, "loss (nats per cell)")
    _series(
        right,
        history,
        {"leakage_background": "background latents", "leakage_responsive": "responsive latents"},
        "effect leakage (variance ratio, 0 is none)",
    )
    if right.lines:
        # a leak of a thousandth must not look like one
        right.set_ylim(min(0.0, right.get_ylim()[0]), max(_LEAK, right.get_ylim()[1]))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure.

    A palette of 64 colours is plenty for these figures and makes the files two to three times smaller.
    """
    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    with Image.open(buffer) as drawn:
        image = drawn.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)


def _series(ax: Axes, history: Mapping[str, Sequence[float]], names: Mapping[str, str], label: str) -> None:
    """Lines of some keys of the history over epochs, passing over nan."""
    epochs, absent = _values(history, "epoch"), []
    for (key, title), style in zip(names.items(), STYLES, strict=False):
        values = _values(history, key)
        along = np.arange(1, len(values) + 1) if not len(epochs) else epochs
        finite = np.isfinite(values)
        if len(along) != len(values) or not finite.any():
            absent.append(title)
            continue
        ax.plot(
            along[finite],
            values[finite],
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markersize=3.5,
            markevery=max(1, int(finite.sum()) // 12),
            markerfacecolor=style.colour if style.filled else "white",
            label=title,
        )
    if absent:
        height = 0.5 if len(absent) == len(names) else 0.04
        text = f"not recorded: {', '.join(absent)}"
        ax.text(0.5, height, text, transform=ax.transAxes, ha="center", fontsize=_SMALL, color="#555555")
    if len(absent) == len(names):
        ax.set(xticks=[], yticks=[])
    else:
        ax.legend(fontsize=_SMALL, frameon=False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)


def _values(history: Mapping[str, Sequence[float]], key: str) -> Array:
    return np.asarray(history.get(key, ()), dtype=float).reshape(-1)


def new_figure(width: float, height: float, panels: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of its own, unknown to pyplot, with panels side by side in some rows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(rows, -(-panels // rows), index + 1) for index in range(panels)]
    for ax in axes:
        ax.tick_params(labelsize=_SMALL)
        ax.xaxis.label.set_fontsize(_SMALL + 1)
        ax.yaxis.label.set_fontsize(_SMALL + 1)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes
