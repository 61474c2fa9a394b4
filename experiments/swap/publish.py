"""python -m experiments.swap.publish: results.csv into the tables of README.md, between their markers, and the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ..filling import fill
from .arms import COMPOSITIONS, EFFECTS, GUIDES

HERE = Path(__file__).parent
DIGITS = {"l2": 2, "delta_pearson": 3, "crps": 4, "log_score": 3, "energy_score": 2, "coverage_90": 3}
TITLES = {"l2": "L2", "delta_pearson": "delta Pearson", "crps": "CRPS", "log_score": "log score", "energy_score": "energy score",
          "coverage_90": "90 % covers"}  # fmt: skip
CLOSED = {
    "probabilistic scaled shrunk additive + kernel ridge": "closed form: scaled shrunk additive + kernel ridge",
    "scaled shrunk additive": "closed form: scaled shrunk additive",
    "probabilistic additive": "closed form: additive",
    "no change": "no change",
}
INFORMED = ("kappa", "stretch", "capacity", "scale", "inclusion odds")


class Results:
    """Values of results.csv."""

    def __init__(self, path: Path) -> None:
        self.rows = pd.read_csv(path)

    def row(self, arm: str, what: str = "model") -> list[str]:
        """Formatted scores: the mean over seeds, and half the range behind it where there are several."""
        mine = self.rows[(self.rows["arm"] == arm) & (self.rows["what"] == what)]
        cells = []
        for metric, digits in DIGITS.items():
            values = mine[mine["metric"] == metric]["value"]
            text = "-" if values.empty else f"{values.mean():.{digits}f}"
            half = 0.5 * (values.max() - values.min()) if len(values) > 1 else 0.0
            cells.append(text + (f" ± {half:.{digits}f}" if round(half, digits) > 0 else ""))
        return cells

    def value(self, arm: str, metric: str, what: str = "model") -> float:
        """Mean over seeds; nan where it was not run."""
        rows = self.rows
        chosen = (rows["arm"] == arm) & (rows["what"] == what) & (rows["metric"] == metric)
        return float(rows[chosen]["value"].mean())


def table(title: str, rows: list[tuple[str, list[str]]]) -> str:
    """Markdown of the arms that were run."""
    rows = [(name, cells) for name, cells in rows if set(cells) != {"-"}]
    if not rows:
        return "*Not run yet.*"
    lines = [f"| {title} | {' | '.join(TITLES.values())} |", f"|---|{'---|' * len(DIGITS)}"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows])


def tables(results: Results) -> dict[str, str]:
    """Every table by the name of its marker."""
    doubles = [(name, results.row(f"doubles {name}")) for name in COMPOSITIONS]
    doubles.append(("bilinear, warm start", results.row("doubles bilinear", "model, warm start")))
    doubles += [(shown, results.row("doubles additive", name)) for name, shown in CLOSED.items()]
    doubles.append(("floor: the true mean", results.row("doubles additive", "floor: perfect prediction")))
    singles = [(f"{name}, warm start", results.row(f"singles {name}")) for name in COMPOSITIONS]
    chosen = [(name, results.row(f"cv {name}")) for name in COMPOSITIONS]
    kernel = "probabilistic scaled shrunk additive + kernel ridge"
    chosen.append((CLOSED[kernel], results.row("cv additive", kernel)))
    brief = [doubles[3], *doubles[5:7], doubles[-1]]
    title = "even doubles trained, odd scored"
    out = {"doubles": table(title, doubles), "readme": table(title, brief), "cv": table("five folds of the even doubles", chosen),
           "singles": table("singles trained, odd scored", singles)}  # fmt: skip
    for regime in ("simulated", "singles"):
        rows = [(f"{e}, {g}", results.row(f"{regime} {e} {g}")) for e in EFFECTS for g in GUIDES]
        out[f"{regime}-priors"] = table(f"{regime}: effects, guide", rows)
    informed = [("default, warm start", results.row("singles bilinear"))]
    informed += [(f"{what} {way}", results.row(f"singles {what} {way}")) for what in INFORMED for way in ("half", "double")]
    out["informed"] = table("singles trained, warm start, odd scored", informed)
    return out


def figure(results: Results, path: Path) -> None:
    """CRPS of every swap beside the default's, one panel a regime; a dot an arm, short ticks the seeds."""
    panels = {
        "even doubles trained": [f"doubles {n}" for n in COMPOSITIONS],
        "simulated, singles trained": [f"simulated {e} {g}" for e in EFFECTS for g in GUIDES],
        "singles trained": [f"singles {e} {g}" for e in EFFECTS for g in GUIDES],
        "singles trained, warm start": [f"singles {n}" for n in COMPOSITIONS]
        + [f"singles {w} {way}" for w in INFORMED for way in ("half", "double")],
    }
    run = set(results.rows["arm"])
    panels = {title: [name for name in names if name in run] for title, names in panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    drawn, axes = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 4.2), layout="constrained", squeeze=False)
    for ax, (title, found) in zip(axes[0], panels.items(), strict=True):
        for at, name in enumerate(found):
            rows = results.rows
            values = rows[(rows["arm"] == name) & (rows["what"] == "model") & (rows["metric"] == "crps")]["value"]
            ax.plot(values, [at] * len(values), "|", color="0.5", markersize=9)
            ax.plot(values.mean(), at, "o", color="black", markersize=5)
        ax.set_yticks(range(len(found)), [name.split(" ", 1)[1] for name in found], fontsize=8)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("CRPS of held-out pairs,\nlog1p(counts per 10,000); smaller is better", fontsize=7)
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def main() -> None:
    results = Results(HERE / "results.csv")
    for readme in (HERE / "README.md", HERE.parents[1] / "README.md"):
        fill(readme, "swap", tables(results))
    figure(results, HERE / "swaps.png")


if __name__ == "__main__":
    main()
