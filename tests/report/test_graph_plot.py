"""The picture of a graph shows the edges that are probable, and which of them restarts agree on."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Annotation

from pvae_pyro.report.graph_plot import graph_figure

NAMES = ["IFNGR2", "A$B", "", "MYC"]
EDGES = pd.DataFrame(
    {
        "source": [0, 0, 1, 2], "target": [1, 2, 3, 3], "probability": [0.9, 0.99, 0.4, 0.8], "mean": [0.5, -1.0, 3.0, 0.0],
        "identified": [True, False, False, False],
    }
)  # fmt: skip


def arrows(ax: Axes) -> list[Annotation]:
    return [one for one in ax.texts if isinstance(one, Annotation)]


def test_arrows_are_the_probable_edges() -> None:
    (ax,) = graph_figure(NAMES, EDGES, title="50 % of $").axes
    drawn = [one.arrow_patch for one in arrows(ax)]
    assert len(drawn) == 2  # not the improbable one, nor one without a weight
    assert to_hex(drawn[0].get_edgecolor()) == "#111111" and to_hex(drawn[1].get_edgecolor()) != "#111111"
    assert drawn[0].get_linestyle() == "-" and drawn[1].get_linestyle() != "-"
    assert drawn[1].get_linewidth() > drawn[0].get_linewidth()
    assert arrows(ax)[0].xyann != arrows(ax)[0].xy
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["raises", "lowers", "restarts agree", "not identified"]
    assert len(arrows(graph_figure(NAMES, EDGES, least=0.95).axes[0])) == 1


def test_a_graph_without_probable_edges_says_so() -> None:
    (ax,) = graph_figure(NAMES, EDGES, least=0.999).axes
    assert not arrows(ax) and "no edge" in ax.get_legend().get_texts()[0].get_text()
