"""Figures of calibration, one function each, from plain tables; grey is enough to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pvae_pyro.report.plots import STYLES, Style, new_figure

Array = NDArray[np.float64]

_SMALL = 8
_GREY = "#777777"
_GUIDE = (0, (1, 1))
_FEW_CASES, _FEW_CONDITIONS = 20, 5
_CALLS = {"stronger": "|e| > size", "synergy": "e > size", "opposite": "e < -size"}


def group_figure(coverage: pd.DataFrame, methods: Sequence[str], level: float, subject: str) -> Figure:
    """Coverage of one level by group, a row a group, with 95 % intervals over conditions.

    coverage: rows of ``calibration.coverage_table`` with a column method; groups stand in the order of the table.
    """
    table = coverage[np.isclose(coverage["level"], level) & coverage["method"].isin(list(methods))]
    keys = list(dict.fromkeys(zip(table["group"], table["label"], strict=True)))
    figure, (ax,) = new_figure(7.2, 1.4 + 0.19 * (len(keys) + len(dict.fromkeys(table["group"]))), 1)
    height, place, names, heads = 0.0, {}, [], {}
    for group, label in keys:
        if group not in heads:
            heads[group] = height
            height += 0.0 if group == "overall" else 1.0
        place[group, label] = height
        names.append((height, "overall" if group == "overall" else _tenth(label)))
        height += 1.0
    ax.axvline(level, color=_GREY, linewidth=1.2, linestyle=_GUIDE, zorder=1, label=f"nominal, {level:.2f}")
    shift = np.linspace(-0.16, 0.16, len(methods)) if len(methods) > 1 else np.zeros(1)
    for method, style, off in zip(methods, STYLES, shift, strict=False):
        part = table[table["method"] == method]
        rows = np.array([place[key] for key in zip(part["group"], part["label"], strict=True)]) + off
        ax.hlines(rows, part["low"], part["high"], color=style.colour, linewidth=1.1, zorder=2)
        _dots(ax, part["coverage"], rows, style, method)
    for group, at in heads.items():
        if group != "overall":
            ax.text(
                0.0,
                at,
                f" {group}",
                transform=ax.get_yaxis_transform(),
                fontsize=_SMALL,
                weight="bold",
                va="center",
            )
            ax.axhline(at - 0.5, color="#dddddd", linewidth=0.7, zorder=0)
    ax.set_yticks([at for at, _ in names], [name for _, name in names], fontsize=_SMALL - 1, parse_math=False)
    ax.set_ylim(height - 0.4, -0.8)
    low = float(np.nanmin([table["low"].min(), level]))
    ax.set_xlim(max(0.0, np.floor((low - 0.02) * 20) / 20), 1.0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.set_xlabel(f"share of measured values inside {100 * level:.0f} % intervals")
    ax.set_title(subject, fontsize=_SMALL + 1, parse_math=False)
    _legend(figure, ax)
    return figure


def pit_figure(tables: Mapping[str, pd.DataFrame], subject: str) -> Figure:
    """ECDF of PIT values minus the uniform one, with bands that hold for all points at once (resampled conditions)."""
    figure, (ax,) = new_figure(5.6, 4.2, 1)
    ax.axhline(0.0, color=_GREY, linewidth=1, linestyle=_GUIDE, label="calibrated")
    for (name, one), style in zip(tables.items(), STYLES, strict=False):
        ax.fill_between(one["u"], one["low"], one["high"], facecolor=style.colour, alpha=0.2, linewidth=0)
        _line(ax, one["u"], one["difference"], style, name, every=11)
    reach = max(0.05, 1.08 * float(np.nanmax([np.abs(np.array(ax.get_ylim())).max(), 0.0])))
    ax.set(xlim=(0, 1), ylim=(-reach, reach))
    ax.set_xlabel("u: predicted probability of a value up to the measured one")
    ax.set_ylabel("share of measured values up to u, minus u")
    ax.set_title(subject, fontsize=_SMALL + 1, parse_math=False)
    for height, side, words in (
        (0.97, "top", "above 0 left, below 0 right: too narrow"),
        (0.03, "bottom", "below 0 left, above 0 right: too wide"),
    ):
        ax.text(
            0.98,
            height,
            words,
            transform=ax.transAxes,
            ha="right",
            va=side,
            fontsize=_SMALL - 1,
            color="#555555",
        )
    _legend(figure, ax, 1)
    return figure


def sign_figure(binned: pd.DataFrame, curve: pd.DataFrame, subject: str) -> Figure:
    """Reliability of P(shift from control is up): bins with intervals, the isotonic curve and its band, and how many cases."""
    figure = Figure(figsize=(4.6, 6.2), layout="constrained")
    ax, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    _plain(ax, below)
    _diagonal(ax)
    # boxes of equal width: an equal aspect would make the upper one narrower
    ax.set(aspect="auto", box_aspect=1)
    below.set_box_aspect(0.24)
    ax.fill_between(
        curve["predicted"], curve["low"], curve["high"], facecolor="#3a7ca5", alpha=0.22, linewidth=0
    )
    ax.plot(
        curve["predicted"], curve["fitted"], color="#3a7ca5", linewidth=1.4, label="isotonic fit, 95 % band"
    )
    _bins(ax, binned, STYLES[0], "tenths of the probability, 95 % interval")
    ax.set_ylabel("share of them measured up")
    ax.set_title(subject, fontsize=_SMALL + 1, parse_math=False)
    width = binned["to"] - binned["from"]
    share = binned["cases"] / binned["cases"].sum()
    below.bar(binned["from"], share, width=0.94 * width, align="edge", color="#9a9a9a")
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    below.set_ylabel("share of\nall calls")
    below.set_xlabel("predicted probability that the shift from control is up")
    _legend(figure, ax, 1)
    return figure


def risk_figure(curves: Mapping[str, Array], mean_error: float, unit: str, subject: str) -> Figure:
    """Mean error of the conditions kept when the most doubtful are left out, by what doubt is taken from.

    Drawn from a tenth of the conditions on: the mean of fewer is noise.
    """
    figure, (ax,) = new_figure(5.6, 4.4, 1)
    ax.axhline(mean_error, color=_GREY, linewidth=1, linestyle=_GUIDE, label="no ranking (all conditions)")
    for (name, risk), style in zip(curves.items(), STYLES, strict=False):
        first = -(-len(risk) // 10)
        kept = np.arange(first, len(risk) + 1) / len(risk)
        _line(ax, kept, risk[first - 1 :], style, name, every=max(1, len(risk) // 8))
    ax.set_xlim(0, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("conditions kept, least doubtful first")
    ax.set_ylabel(f"mean error of those kept\n{unit}")
    ax.set_title(subject, fontsize=_SMALL + 1, parse_math=False)
    _legend(figure, ax, 1)
    return figure


def width_figure(coverage: pd.DataFrame, methods: Sequence[str], unit: str, subject: str) -> Figure:
    """Coverage against mean width at every level: of two methods of equal coverage the one to the left says more."""
    figure, (ax,) = new_figure(5.6, 4.6, 1)
    table = coverage[(coverage["group"] == "overall") & np.isfinite(coverage["width"])]
    levels = sorted(set(table["level"]))
    for level in levels:
        ax.axhline(level, color="#cccccc", linewidth=0.8, linestyle=_GUIDE, zorder=0)
    for method, style in zip(methods, STYLES, strict=False):
        part = table[table["method"] == method].sort_values("level")
        ax.vlines(part["width"], part["low"], part["high"], color=style.colour, linewidth=1.1)
        _line(ax, part["width"], part["coverage"], style, method, every=1)
    ax.set_xlim(left=0)
    ax.set_ylim(max(0.0, float(table["low"].min()) - 0.05), 1.0)
    ax.set_yticks(levels, [f"{level:.2f}" for level in levels])
    ax.set_xlabel(f"mean width of the intervals: {unit}")
    ax.set_ylabel("share of measured values inside\n(lines: nominal levels)")
    ax.set_title(subject, fontsize=_SMALL + 1, parse_math=False)
    _legend(figure, ax, 1)
    return figure


def call_figure(calls: pd.DataFrame, unit: str, subject: str) -> Figure:
    """Reliability of calls of interactions: the sign, and |e|, e or -e beyond a size, a panel each.

    Bins of fewer than 20 genes or 5 combinations are left out, as no share can be told from them.
    """
    calls = calls[(calls["cases"] >= _FEW_CASES) & (calls["conditions"] >= _FEW_CONDITIONS)]
    kinds = [kind for kind in ("sign", *_CALLS) if (calls["call"] == kind).any()]
    figure, axes = new_figure(max(3.4, 2.7 * len(kinds)), 3.8, max(1, len(kinds)))
    for ax, kind in zip(axes, kinds, strict=False):
        _diagonal(ax)
        part = calls[calls["call"] == kind]
        for (size, one), style in zip(part.groupby("size"), STYLES, strict=False):
            ax.plot(
                one["predicted"], one["observed"], color=style.colour, linewidth=0.8, linestyle=style.line
            )
            _bins(ax, one, style, f"size {size:g}" if kind in _CALLS else "")
        words = _CALLS.get(kind, "e > 0")
        ax.set_title(f"{'sign' if kind == 'sign' else kind}: {words}", fontsize=_SMALL + 1)
        ax.set_xlabel("predicted probability")
    axes[0].set_ylabel("share measured so")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=_SMALL, frameon=False
    )
    figure.suptitle(f"{subject}; sizes in {unit}", fontsize=_SMALL + 1, parse_math=False)
    return figure


def _bins(ax: Axes, table: pd.DataFrame, style: Style, label: str) -> None:
    ax.vlines(table["predicted"], table["low"], table["high"], color=style.colour, linewidth=1.1, zorder=3)
    _dots(ax, table["predicted"], table["observed"], style, label)


def _dots(ax: Axes, x: pd.Series[float], y: Array | pd.Series[float], style: Style, label: str) -> None:
    face = style.colour if style.filled else "white"
    ax.plot(
        x,
        y,
        style.marker,
        color=style.colour,
        markersize=4.5,
        markerfacecolor=face,
        zorder=4,
        label=label or None,
    )


def _line(
    ax: Axes, x: Array | pd.Series[float], y: Array | pd.Series[float], style: Style, label: str, every: int
) -> None:
    ax.plot(
        x,
        y,
        color=style.colour,
        linestyle=style.line,
        linewidth=1.4,
        marker=style.marker,
        markersize=4,
        markevery=every,
        markerfacecolor=style.colour if style.filled else "white",
        label=label,
    )


def _diagonal(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=_GUIDE, label="reliable", zorder=1)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _plain(*axes: Axes) -> None:
    for ax in axes:
        ax.tick_params(labelsize=_SMALL)
        ax.xaxis.label.set_fontsize(_SMALL + 1)
        ax.yaxis.label.set_fontsize(_SMALL + 1)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)


def _legend(figure: Figure, ax: Axes, columns: int = 1) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=_SMALL, frameon=False)


def _tenth(label: str) -> str:
    """ "01" and "10" of ten groups with what they mean."""
    ends = {"01": "1 (lowest)", "10": "10 (highest)"}
    return ends.get(label, label.lstrip("0"))
