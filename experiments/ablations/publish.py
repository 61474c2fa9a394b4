"""python -m experiments.ablations.publish: results.csv into the tables of README.md and the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pvae_pyro.evaluation.differences import sentences

from ..filling import fill, markdown
from .arms import DEFAULT, METRICS
from .claims import claim_table
from .differences import STRATUM, differences

HERE = Path(__file__).parent
FIGURE = "ablations.png"
TITLES = {"l2": "L2", "delta_pearson": "delta Pearson", "crps": "CRPS", "coverage_90": "90 % covers"}
DIGITS = {"l2": 2, "delta_pearson": 3, "crps": 4, "coverage_90": 3}
FIT = {
    "responsive": "d_r", "background": "d_b", "active_background": "z_b in use", "kl_background": "KL of z_b (nats)",
    "leakage_background": "leak, background", "leakage_responsive": "leak, noise", "held_out_loss": "held-out loss",
}  # fmt: skip


def value(results: pd.DataFrame, arm: str, what: str, metric: str) -> float:
    """Mean over seeds; nan where it was not run."""
    chosen = (results["arm"] == arm) & (results["what"] == what) & (results["metric"] == metric)
    return float(results[chosen]["value"].mean())


def odd_table(results: pd.DataFrame, found: pd.DataFrame) -> str:
    """Scores of the default, and differences of every arm from it with their 95 % intervals."""
    names = [f"{TITLES[m]}{'' if m == 'coverage_90' else ', change'}" for m in METRICS]
    cells = [f"{value(results, DEFAULT, 'model, odd pairs', m):.{DIGITS[m]}f}" for m in METRICS]
    seeds = results[results["arm"] == DEFAULT]["seed"].nunique()
    rows = [[DEFAULT, str(seeds), *cells, ""]]
    for arm, part in found.groupby("method", sort=False):
        by = part.set_index("metric")
        cells = [_change(by, m) for m in METRICS]
        rows.append([str(arm), str(by["seeds"].iloc[0]), *cells, _matters(by)])
    return markdown(["odd pairs", "seeds", *names, "matters"], rows)


def even_table(results: pd.DataFrame) -> str:
    """What a choice would be made by: L2 and CRPS of even pairs, of the trained model and of its start."""
    columns = [(f"{method}, even pairs", m) for method in ("model", "warm start") for m in ("l2", "crps")]
    titles = [f"{TITLES[m]}{', warm start' if 'start' in what else ''}" for what, m in columns]
    rows = [
        [arm, *(_number(value(results, arm, what, m), DIGITS[m]) for what, m in columns)] for arm in dict.fromkeys(results["arm"])
    ]
    return markdown(["even pairs", *titles], rows)


def fit_table(results: pd.DataFrame) -> str:
    """What became of background and effects in training, and the seconds of an arm (one thread, shared core)."""
    rows = []
    for arm in dict.fromkeys(results["arm"]):
        cells = [_number(value(results, arm, "fit", m), 0 if m in ("responsive", "background") else 3) for m in FIT]
        seconds = results[results["arm"] == arm].groupby("seed")["seconds"].first().mean()
        rows.append([arm, *cells, f"{seconds:.0f}"])
    return markdown(["fit", *FIT.values(), "seconds"], rows)


def draw(found: pd.DataFrame, path: Path) -> None:
    """Change of L2 and CRPS of every arm in per cent of the default's, with 95 % intervals."""
    names = list(dict.fromkeys(found["method"]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.2 + 0.27 * len(names)), sharey=True, layout="constrained")
    for axis, metric in zip(axes, ("l2", "crps"), strict=True):
        part = found[found["metric"] == metric].set_index("method").loc[names]
        middle, low, high = (100 * part[c].to_numpy() / part["reference_value"].to_numpy() for c in ("difference", "low", "high"))
        differs = part["outcome"].isin(["better", "worse"]).to_numpy()
        for row in range(len(names)):
            face = "black" if differs[row] else "white"
            axis.plot([low[row], high[row]], [row, row], color="0.55", linewidth=2)
            axis.plot(middle[row], row, "o", color="black", markerfacecolor=face, markersize=5)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xscale("symlog", linthresh=5)
        furthest = max(float(np.nanmax(np.abs([low, high]))), 5.0)
        ticks = [t for t in (-100, -50, -20, -5, 0, 5, 20, 50, 100, 200) if -np.nanmax(-low) - 2 <= t <= furthest * 1.1]
        axis.set_xticks(ticks, [f"{t:+d}" if t else "0" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel(f"{TITLES[metric]} of odd pairs, change from the default (%)")
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    axes[0].set_title("filled: beyond noise; smaller is better; linear inside ±5", fontsize=8, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tables(results: pd.DataFrame) -> dict[str, str]:
    """Every table by the name of its marker."""
    found = differences(results)
    told = "\n".join(f"- {text.split(f'({STRATUM}) ', 1)[-1]}" for text in sentences(found))
    return {"claims": claim_table(results), "odd": odd_table(results, found), "sentences": told,
            "even": even_table(results), "fits": fit_table(results)}  # fmt: skip


def _change(by: pd.DataFrame, metric: str) -> str:
    row, digits = by.loc[metric], DIGITS[metric]
    ends = "-" if np.isnan(row["low"]) else f"{row['low']:+.{digits}f} to {row['high']:+.{digits}f}"
    if metric == "coverage_90":
        return f"{row['value']:.{digits}f}"
    return f"{row['difference']:+.{digits}f} ({ends})"


def _matters(by: pd.DataFrame) -> str:
    said = {m: by.loc[m, "outcome"] for m in METRICS}
    words = {w: [TITLES[m] for m, o in said.items() if o == w] for w in ("worse", "better")}
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in words.items() if names) or "no"


def _number(number: float, digits: int) -> str:
    return "-" if np.isnan(number) else f"{number:.{digits}f}"


def main() -> None:
    """Fill the README and draw the figure."""
    results = pd.read_csv(HERE / "results.csv")
    fill(HERE / "README.md", "ablations", tables(results))
    found = differences(results)
    if len(found):
        draw(found, HERE / FIGURE)


if __name__ == "__main__":
    main()
