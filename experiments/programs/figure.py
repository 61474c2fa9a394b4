"""The figure: who moves which program on Papalexi, its graph, and which latents come back in other fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pvae_pyro.report.graph_plot import draw_graph

from .arms import LATENTS

if TYPE_CHECKING:
    from .publish import Results

LIKELY, EDGES_FROM = "papalexi edges likely a priori", 0.3  # under the default prior no edge is above its 0.05
LARGEST = 14.0  # points, the diameter of the largest effect
SHOWN = {
    "papalexi restarts": ("o", "black", "Papalexi, restarts"),
    "papalexi resampled cells": ("o", "white", "Papalexi, resampled cells"),
    "norman restarts": ("s", "black", "semi-synthetic Norman, restarts"),
    "norman resampled cells": ("s", "white", "semi-synthetic Norman, resampled cells"),
}


def draw(results: Results, path: Path, arm: str = "papalexi restarts") -> None:
    """Three panels from results.csv."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained", width_ratios=(0.8, 1.25, 1))
    _effects(axes[0], results, arm)
    _graph(axes[1], results, LIKELY if LIKELY in results.arms else arm)
    _stability(axes[2], results)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _effects(axis: Axes, results: Results, arm: str) -> None:
    """Area by size of the effect; black raises, white lowers."""
    table = pd.DataFrame({k: dict(results.named(arm, k, "target", "effect")) for k in range(LATENTS)}).fillna(0.0)
    table = table.loc[(table**2).sum(axis=1).sort_values().index]
    x, y = np.meshgrid(np.arange(LATENTS), np.arange(len(table)))
    values = table.to_numpy().ravel()
    size = (LARGEST * np.sqrt(np.abs(values) / np.abs(values).max())) ** 2
    face = np.where(values > 0, "black", "white")
    axis.scatter(x.ravel(), y.ravel(), s=size, c=face, edgecolors="black", linewidths=0.6)
    axis.set_yticks(np.arange(len(table)), table.index, fontsize=7)
    axis.set(xticks=range(LATENTS), xlabel="responsive latent", xlim=(-0.7, LATENTS - 0.3),
             title=f"Papalexi (real): effects, largest {np.abs(values).max():.1f} sds\nblack raises, white lowers")  # fmt: skip


def _graph(axis: Axes, results: Results, arm: str) -> None:
    rows = results.rows[(results.rows["arm"] == arm) & results.rows["what"].str.startswith("edge ")]
    table = rows.pivot(index="what", columns="metric", values="value").reset_index()
    ends = table["what"].str.extract(r"edge (\d+)->(\d+)").astype(int)
    edges = table.assign(source=ends[0], target=ends[1], identified=table["identified"] > 0.5)
    names = [", ".join(t for t, _ in list(results.named(arm, k, "target", "effect"))[:2]) for k in range(LATENTS)]
    draw_graph(axis, names, edges, least=EDGES_FROM)
    largest = edges["mean"].abs().max()
    title = f"Papalexi (real), prior probability of an edge 0.5: edges above {EDGES_FROM}\n"
    title += f"(mean of four fits; the widest has weight {largest:.2f})"
    axis.set_title(title, fontsize=10)


def _stability(axis: Axes, results: Results) -> None:
    shown = {arm: how for arm, how in SHOWN.items() if arm in results.arms}
    for arm, (marker, face, label) in shown.items():
        worst = [results.value(arm, f"latent {k}", "worst_loadings_cosine") for k in range(LATENTS)]
        axis.plot(range(LATENTS), worst, marker=marker, color="black", mfc=face, linewidth=0.6, label=label,
                  linestyle="-" if face == "black" else "--")  # fmt: skip
    floor = np.nanmean([results.value(arm, "random rotation", "loadings_cosine") for arm in shown])
    axis.axhline(floor, color="0.5", linestyle=":", linewidth=1)
    axis.text(0, floor, "random axes, mean", fontsize=8, va="bottom")
    axis.set(xlabel="responsive latent of the first fit, by size", ylabel="|cosine| of loadings, worst of three other fits",
             ylim=(0, 1.03), title="is the latent found again?")  # fmt: skip
    axis.legend(fontsize=8, frameon=False, loc="lower left")
