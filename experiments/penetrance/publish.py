"""python -m experiments.penetrance.publish: the table of README.md and the figure, from results.csv."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pvae_pyro import Mixture

from ..filling import fill, markdown
from .arms import KNOWN, STRONG

HERE = Path(__file__).parent
NAME = "rates.png"
SEEDS = (0, 1, 2)


def rates(results: pd.DataFrame, arm: str, seed: int = 0) -> pd.DataFrame:
    """One row per target: mean, sd, q05, q95, size of its effect; largest effect last."""
    mine = results[(results["arm"] == arm) & (results["seed"] == seed) & results["what"].str.startswith("on: rate of ")]
    table = mine.assign(target=mine["what"].str.removeprefix("on: rate of ")).pivot(
        index="target", columns="metric", values="value"
    )
    return table.sort_values("size")


def _norman(axis: Axes, results: pd.DataFrame) -> None:
    table = rates(results, "norman")
    axis.vlines(table["size"], table["q05"], table["q95"], color="0.75", linewidth=1)
    axis.plot(table["size"], table["mean"], "o", color="black", markersize=3)
    axis.axhline(KNOWN, color="black", linewidth=1)
    axis.text(1.0, KNOWN + 0.006, "simulated: 0.92", fontsize=8, ha="right", transform=axis.get_yaxis_transform())
    axis.set(title="semi-synthetic Norman, 104 targets", xlabel="size of the effect (sds of control cells, all genes)",
             ylabel="share of cells that respond", ylim=(0.4, 1.01), xlim=(0, None))  # fmt: skip


def _papalexi(axis: Axes, results: pd.DataFrame) -> None:
    table = rates(results, "papalexi-gaussian")
    rows = np.arange(len(table))
    axis.hlines(rows, table["q05"], table["q95"], color="0.6", linewidth=2)
    axis.plot(table["mean"], rows, "o", color="black", markersize=4)
    axis.axvline(Mixture().centre, color="black", linewidth=1, linestyle=":")
    axis.text(Mixture().centre - 0.005, -0.8, "prior", fontsize=8, ha="right", va="center")
    axis.set(title="Papalexi (real), by size of effect", xlabel="share of cells that respond",
             xlim=(0.4, 1.01), ylim=(-1.5, None))  # fmt: skip
    axis.set_yticks(rows, [str(t) for t in table.index], fontsize=7)


def _gain(axis: Axes, results: pd.DataFrame) -> None:
    groups = {", ".join(STRONG): "IFNGR1, IFNGR2,\nJAK2, STAT1", "other targets": "other targets", "control": "control"}
    mine = results[(results["arm"] == "papalexi-gaussian") & (results["metric"] == "log_density")]
    fits = ((", warm start", "white", 0.2), ("", "black", -0.2))
    for (row, what), (when, face, lift) in itertools.product(enumerate(groups), fits):
        of = mine[mine["what"].isin([f"on minus off{when}: {what}", f"on minus off{when}, standard error: {what}"])]
        table = of.pivot(index="seed", columns="what", values="value").sort_index(axis=1, key=lambda names: names.str.len())
        gain, error = table.to_numpy().T  # the longer name is the error's
        place = lift - row + 0.1 * (np.arange(len(gain)) - (len(gain) - 1) / 2)
        label = {"white": "warm start", "black": "trained"}[face] if row == 0 else None
        axis.errorbar(gain, place, xerr=1.96 * error, fmt="o", color="black", mfc=face, ecolor="0.6", markersize=4, label=label)
    axis.axvline(0, color="black", linewidth=1)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.set(title="Papalexi, cells held out", ylim=(-2.6, 0.6),
             xlabel="log density, on minus off\n(nats a cell, 95 %, a dot for each seed)")  # fmt: skip
    axis.set_yticks([0, -1, -2], list(groups.values()), fontsize=8)


def draw(results: pd.DataFrame, path: Path) -> None:
    """Rates on both screens, and the gain of held-out cells."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", width_ratios=(1.3, 1, 0.9))
    for axis, panel in zip(axes, (_norman, _papalexi, _gain), strict=True):
        panel(axis, results)
        axis.title.set_fontsize(10)
        for side in ("right", "top"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def table(results: pd.DataFrame) -> str:
    """What was found, a column for each seed."""
    values = results.set_index(["arm", "what", "metric", "seed"])["value"].sort_index()
    norman, real, strong = "norman", "papalexi-gaussian", ", ".join(STRONG)

    def of(arm: str, what: str, metric: str, seed: int) -> float:
        return float(values[arm, what, metric, seed])

    def gain(arm: str, what: str, metric: str, seed: int, when: str = "") -> str:
        both = (of(arm, f"on minus off{when}{term}{what}", metric, seed) for term in ("", ", standard error"))
        return "{:+.2f} ({:.2f})".format(*both)

    quarters = [f"on: rates, quarter {q} of effects" for q in (1, 2, 3, 4)]
    rows: list[tuple[str, Callable[[int], str]]] = [
        ("semi-synthetic Norman: mean rate in the quarter with the largest effects (known: 0.92)",
         lambda s: f"{of(norman, quarters[-1], 'mean', s):.3f}"),
        ("the same: share of 90 % intervals with 0.92 inside, quarters from small to large effects",
         lambda s: ", ".join(f"{of(norman, q, 'covers_known', s):.2f}" for q in quarters)),
        ("the same: held-out loss of cells, off -> on (nats a cell)",
         lambda s: " -> ".join(f"{of(norman, w, 'held_out_loss', s):.1f}" for w in ("off", "on"))),
        ("the same: L2 of odd doubles, singles trained, off -> on; difference with standard error over pairs",
         lambda s: " -> ".join(f"{of(norman, f'{w} [odd]', 'l2', s):.2f}" for w in ("off", "on"))
         + f"; {gain(norman, ' [odd]', 'l2', s)}"),
        ("the same: 90 % intervals of odd doubles cover, off -> on",
         lambda s: " -> ".join(f"{of(norman, f'{w} [odd]', 'coverage_90', s):.3f}" for w in ("off", "on"))),
        (f"Papalexi, held-out cells: log density on minus off, {strong.replace(', ', '/')} (standard error)",
         lambda s: gain(real, f": {strong}", "log_density", s)),
        ("the same at the warm start", lambda s: gain(real, f": {strong}", "log_density", s, ", warm start")),
        ("the same, other targets, trained", lambda s: gain(real, ": other targets", "log_density", s)),
        ("Papalexi, L2 of held-out pseudobulks over that of the cells' own mean, off / on",
         lambda s: " / ".join(f"{of(real, w, 'l2_ratio_to_own_mean', s):.3f}" for w in ("off", "on"))),
    ]  # fmt: skip
    return markdown(["", *(f"seed {s}" for s in SEEDS)], [[title, *(shown(s) for s in SEEDS)] for title, shown in rows])


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    fill(HERE / "README.md", "penetrance", {"found": table(results)})
    draw(results, HERE / NAME)


if __name__ == "__main__":
    main()
