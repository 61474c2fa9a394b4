"""The latent graph as a picture: programs on a circle, causes before effects, edges that may not mean anything in grey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pvae_pyro.report.plots import new_figure

_SURE, _UNSURE = "#111111", "#a0a0a0"
_WIDEST = 3.0  # points, of the largest weight drawn


def graph_figure(names: Sequence[str], edges: pd.DataFrame, least: float = 0.5, title: str = "") -> Figure:
    """A node for each latent, named by `names` (latents,) clockwise from the top, an arrow for each edge with a probability above
    `least`: width by |mean|, solid raises, dashed lowers; black where restarts agree, grey where it is not identified.

    `edges`: the table of `Fit.edges_table` or `agreeing_edges` (source, target, probability, mean, identified).
    """
    figure, (ax,) = new_figure(6.4, 5.6, 1)
    draw_graph(ax, names, edges, least)
    ax.set_title(title, fontsize=10, parse_math=False)
    return figure


def draw_graph(ax: Axes, names: Sequence[str], edges: pd.DataFrame, least: float = 0.5) -> None:
    """The same on axes that are there."""
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / max(len(names), 1)
    place = np.column_stack([np.cos(angle), np.sin(angle)])
    shown = edges[(edges["probability"] > least) & (edges["mean"] != 0)]
    widest = float(shown["mean"].abs().max()) if len(shown) else 1.0
    for edge in shown.to_dict("records"):
        arrow = {
            "arrowstyle": "-|>", "color": _SURE if edge["identified"] else _UNSURE, "shrinkA": 13, "shrinkB": 13,
            "linewidth": 0.6 + (_WIDEST - 0.6) * abs(edge["mean"]) / widest,
            "linestyle": "-" if edge["mean"] > 0 else (0, (4, 2)), "connectionstyle": "arc3,rad=0.08",
        }  # fmt: skip
        ax.annotate("", place[int(edge["target"])], place[int(edge["source"])], arrowprops=arrow)
    ax.plot(*place.T, "o", markersize=19, color="white", markeredgecolor=_SURE)
    for k, ((x, y), name) in enumerate(zip(place, names, strict=True)):
        ax.text(x, y, str(k), ha="center", va="center", fontsize=9)
        side = "left" if x > 0.1 else "right" if x < -0.1 else "center"
        lift = 0.1 * np.sign(y) if side == "center" else 0.0
        ax.text(1.17 * x, 1.17 * y + lift, name, ha=side, va="center", fontsize=8, parse_math=False)
    ax.set(xlim=(-2.1, 2.1), ylim=(-1.5, 1.5), aspect="equal")
    ax.axis("off")
    ax.legend(handles=_key(shown), fontsize=8, frameon=False, loc="lower center", ncols=2, bbox_to_anchor=(0.5, -0.08))


def _key(shown: pd.DataFrame) -> list[Line2D]:
    """What the lines mean; of the colours only those that are there."""
    kinds = [(_SURE, "-", "raises"), (_SURE, "--", "lowers")]
    found = set(shown["identified"].astype(bool))
    meaning = ((_SURE, "restarts agree", True), (_UNSURE, "not identified", False))
    kinds += [(colour, "-", text) for colour, text, sure in meaning if sure in found]
    if not found:
        kinds = [("white", "-", "no edge is probable enough to be drawn")]
    return [Line2D([], [], color=colour, linestyle=line, label=text) for colour, line, text in kinds]
