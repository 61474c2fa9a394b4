"""The figure of a prior: what it expects of perturbations beside what was measured, readable in grey."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pvae_pyro.prediction.prior_summary import ACTIVE, SIZES, PriorSummary
from pvae_pyro.report.plots import new_figure

Array = NDArray[np.float64]

_PRIOR, _OTHER, _MEASURED = "#111111", "#3a7ca5", "#c8553d"
_LEAST = 1e-4  # shares of genes below this are not shown


def prior_figure(summary: PriorSummary) -> Figure:
    """Four panels: shares of genes by the size of their shift, lengths of singles, active latents, non-additivity.

    Lines are medians over draws, bands 90 % of draws; measured values are markers or a dashed line.
    """
    figure, (genes, lengths, active, pairs) = new_figure(9.6, 6.4, 4, rows=2)
    measured = summary.measured
    _beyond(genes, summary)
    label = "length of a single's shift (L2 over genes, log scale)"
    _shares_up_to(lengths, summary.sizes, measured.get("sizes"), "singles", label)
    _active(active, summary)
    label = "departure from the sum of the singles (1: as long as that sum)"
    _shares_up_to(pairs, summary.non_additivity, measured.get("non_additivity"), "combinations", label)
    return figure


def _beyond(ax: Axes, summary: PriorSummary) -> None:
    """Share of genes whose shift is larger than each size, mean over conditions."""
    kinds = (("singles", _PRIOR, "-", "o"), ("combinations", _OTHER, "-.", "s"))
    for kind, colour, line, marker in kinds:
        drawn = getattr(summary, f"above_{kind}")
        if np.isnan(drawn).all():
            continue
        _band(ax, SIZES, drawn, colour, line, f"prior, {kind}")
        seen = summary.measured.get(f"above_{kind}", np.array([np.nan]))
        if not np.isnan(seen).all():
            ax.plot(SIZES, np.where(seen > 0, seen, np.nan), marker, color=colour, markersize=3.5, markevery=2,
                    markerfacecolor="none", label=f"measured, {kind}")  # fmt: skip
    for size in (1, 3):
        ax.axvline(size, color="#bbbbbb", linewidth=0.7, linestyle=":", zorder=0)
    ax.set(xscale="log", yscale="log", ylim=(_LEAST, 1.2), xlim=(SIZES[0], SIZES[-1]))
    ax.set_xlabel("size of a gene's shift from control (log scale of expression)")
    ax.set_ylabel("share of genes beyond it")
    ax.legend(fontsize=7, frameon=False, loc="lower left")


def _band(ax: Axes, x: Array, drawn: Array, colour: str, line: str, label: str) -> None:
    low, middle, high = np.quantile(drawn, [0.05, 0.5, 0.95], axis=0)
    ax.fill_between(x, low, high, facecolor=colour, alpha=0.18, linewidth=0)
    ax.plot(x, np.where(middle > 0, middle, np.nan), color=colour, linestyle=line, linewidth=1.4, label=label)


def _shares_up_to(ax: Axes, drawn: Array, seen: Array | None, kind: str, label: str) -> None:
    """Share of conditions up to each value, for draws (S, conditions) and for the measured ones."""
    known = np.array([]) if seen is None else np.sort(seen[np.isfinite(seen)])
    ax.set_xlabel(label)
    ax.set_ylabel(f"share of {kind} up to it")
    if not np.isfinite(drawn).any():
        ax.text(0.5, 0.5, f"no {kind}", transform=ax.transAxes, ha="center", fontsize=8, color="#555555")
        return
    drawn = drawn[np.isfinite(drawn).any(1)]
    defined = np.isfinite(drawn)
    most = float(np.quantile(drawn[defined], 0.98))
    x = np.linspace(0, 1.02 * max(most, float(known.max()) if len(known) else 0.0, 1e-6), 200)
    share = (drawn[:, :, None] <= x).sum(1) / defined.sum(1, keepdims=True)
    _band(ax, x, share, _PRIOR, "-", "prior: median draw, band 90 % of draws")
    if len(known):
        share = np.arange(1, len(known) + 1) / len(known)
        ax.step(known, share, where="post", color=_MEASURED, linestyle="--", linewidth=1.4, label="measured")
    ax.set(ylim=(0, 1.02), xlim=(0, x[-1]))
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def _active(ax: Axes, summary: PriorSummary) -> None:
    """How many latents a target moves, over targets and draws."""
    counts = np.bincount(summary.active.astype(int).ravel(), minlength=summary.latents + 1) / summary.active.size
    ax.bar(np.arange(len(counts)), counts, width=0.85, color="#9aa7b0", edgecolor=_PRIOR, linewidth=0.5)
    mean = float(summary.active.mean())
    ax.axvline(mean, color=_PRIOR, linewidth=1.2, label=f"mean {mean:.3g}")
    ax.set_xlabel(f"latents, of {summary.latents}, that a target moves by more than {ACTIVE} control-cell sd")
    ax.set_ylabel("share of targets and draws")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=7, frameon=False, loc="upper right")
