"""Tables of the READMEs and the figure from results.csv: python -m experiments.calibration.publish."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..filling import NOT_RUN, fill, markdown
from . import shown

HERE = Path(__file__).parent
READMES = (HERE / "README.md", HERE.parents[1] / "README.md")
TABLE = "Normal, gene widths of even doubles"
TITLES = {
    "coverage_50": "50 %", "coverage_80": "80 %", "coverage_90": "90 %", "coverage_95": "95 %",
    "coverage_90, low effects": "90 %, low effects", "coverage_90, middle effects": "middle", "coverage_90, high effects": "high",
    "crps": "CRPS", "width_90": "width of 90 %",
}  # fmt: skip


def _cell(values: pd.Series, metric: str) -> str:
    digits = 4 if metric == "crps" else 3
    mean, low, high = (f"{value:.{digits}f}" for value in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _table(results: pd.DataFrame, rows: dict[str, tuple[str, str]], first: str) -> str:
    """Markdown: mean over seeds, and their range where there are several; rows: title -> (arm, what)."""
    lines = [f"| {first} | " + " | ".join(TITLES.values()) + " |", "|---|" + "---|" * len(TITLES)]
    for title, (arm, what) in rows.items():
        part = results[(results["arm"] == arm) & (results["what"] == what)]
        if len(part):
            cells = [_cell(part[part["metric"] == metric]["value"], metric) for metric in TITLES]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(results: pd.DataFrame) -> dict[str, str]:
    claims = {
        "singles trained, three seeds": ("singles", "model"),
        "the same means, a Normal with gene widths fitted on the even doubles": ("singles", TABLE),
        "even doubles trained, too, three seeds": ("doubles", "model"),
    }
    widths = {arm: (arm, "model") for arm in dict.fromkeys(results["arm"]) if ":" in arm}
    screens = {
        f"{preset}, {regime} trained, {number} screens": (f"{preset}, {regime}", "model")
        for preset in ("averaging", "synergy") for regime, number in (("singles", "five"), ("half of pairs", "ten"))
    }  # fmt: skip
    shown_csv = HERE / "shown.csv"
    return {
        "shown": shown.table(pd.read_csv(shown_csv, dtype={"label": str})) if shown_csv.exists() else NOT_RUN,
        "conformal": _conformal(results),
        "claims": _table(results, claims, "odd doubles, intervals cover"),
        "widths": _table(results, widths, "odd doubles, seed 0"),
        "screens": _table(results, screens, "simulated pairs held out"),
    }


def _conformal(results: pd.DataFrame) -> str:
    """Markdown: raw and CV+ intervals at every level."""
    part = results[results["arm"] == "CV+ over pairs"]
    rows = []
    for what in dict.fromkeys(part["what"]):
        one = part[part["what"] == what].set_index("metric")["value"]
        levels = [f"{one[f'coverage_{n}']:.3f} (s.e. {one[f'coverage_{n}_se']:.3f})" for n in (50, 80, 90, 95)]
        rows.append([what, *levels, f"{one['width_90']:.3f}"])
    return markdown(["odd doubles, 0 epochs, seed 0", "50 %", "80 %", "90 %", "95 %", "width of 90 %"], rows)


def figure(results: pd.DataFrame, path: Path) -> None:
    """Coverage against CRPS of every way to make or leave out width."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
    for axis, regime in zip(axes, ("singles", "doubles"), strict=True):
        part = results[results["arm"].str.startswith(f"{regime}, start:") & (results["what"] == "model")]
        names = list(dict.fromkeys(part["arm"]))
        for number, arm in enumerate(names):
            one = part[part["arm"] == arm].set_index("metric")["value"]
            axis.plot(one["coverage_90"], number, "o", color="black")
            axis.text(one["coverage_90"] + 0.01, number, f"CRPS {one['crps']:.4f}", fontsize=7, va="center")
        axis.axvline(0.9, color="0.5", linewidth=1)
        axis.set_yticks(range(len(names)), [n.split(": ")[1] for n in names], fontsize=8)
        axis.set(xlabel="share of measured values in 90 % intervals", title=f"{regime} trained, warm start", xlim=(0.65, 1.0))
    axes[0].invert_yaxis()
    fig.savefig(path, dpi=90)
    plt.close(fig)


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    made = tables(results)
    for readme in READMES:
        fill(readme, "calibration", made)
    if results["arm"].str.contains("start:").any():
        figure(results, HERE / "widths.png")
    assert np.isfinite(results["value"]).all()


if __name__ == "__main__":
    main()
