"""python -m experiments.rivals.publish: results.csv into the tables of README.md, between their markers, and the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from pvae_pyro.evaluation.differences import TITLES, difference_table
from pvae_pyro.evaluation.scores import HIGHER_IS_BETTER, Scores

from ..filling import fill
from .arms import REGIMES
from .closed import CLOSED
from .family import FAMILY, OURS
from .scoring import MEAN, METRICS, PAIRED

HERE = Path(__file__).parent
DIGITS = {"l2": 2, "delta_pearson": 3, "crps": 4, "coverage_90": 3}
RIVALS = [*CLOSED, *FAMILY]
FITTED = f"{MEAN}, fitted widths"
UNCHANGED = ("no change", "conditional_vae")


def differences(results: pd.DataFrame, regime: str) -> pd.DataFrame:
    """Rival minus ours on the same pairs, means over seeds: `difference_table` by method and metric; empty without ours."""
    arms = {f"{regime} {name}": name for name in RIVALS}
    of_pairs = results["what"].str.contains("+", regex=False) & results["metric"].isin(PAIRED)
    rows = results[results["arm"].isin(arms) & of_pairs]
    values = rows.groupby(["arm", "what", "metric"], sort=False)["value"].mean().reset_index()
    values = values.rename(columns={"what": "condition"}).assign(n_targets=2, seen=2, stratum="both seen")
    values["method"] = values["arm"].map(arms)
    if OURS not in set(values["method"]):
        return pd.DataFrame(columns=["method", "metric", "difference", "standard_error", "low", "high"])
    return difference_table(Scores(values), sorted(set(values["method"]), key=RIVALS.index), OURS, PAIRED)


def verdict(low: float, high: float, metric: str) -> str:
    """Where the rival stands: tied if the 95 % interval of its difference from ours holds 0, else ahead or behind."""
    if low <= 0 <= high:
        return "tied"
    return "ahead" if (low > 0) == (metric in HIGHER_IS_BETTER) else "behind"


def standing(found: pd.DataFrame, metric: str) -> str:
    """Our place among all: first if every rival is behind beyond noise, tied for first if none is ahead, behind otherwise."""
    part = found[found["metric"] == metric]
    said = {row.method: verdict(row.low, row.high, metric) for row in part.itertuples()}
    ahead, tied = ([name for name, one in said.items() if one == word] for word in ("ahead", "tied"))
    if ahead:
        return f"behind {', '.join(ahead)}"
    return f"tied for first with {', '.join(tied)}" if tied else "first"


def _mean(results: pd.DataFrame, arm: str, metric: str, what: str = MEAN) -> str:
    """Mean over seeds, and half their range where there are several."""
    chosen = (results["arm"] == arm) & (results["what"] == what) & (results["metric"] == metric)
    values, digits = results[chosen]["value"], DIGITS[metric]
    if values.empty:
        return "-"
    half = 0.5 * (values.max() - values.min())
    return f"{values.mean():.{digits}f}" + (f" ± {half:.{digits}f}" if round(half, digits) > 0 else "")


def _against(found: pd.DataFrame, name: str, metric: str) -> str:
    part = found[(found["method"] == name) & (found["metric"] == metric)]
    if part.empty:
        return "-"
    row, digits = part.iloc[0], DIGITS[metric]
    shown = f"{row['difference']:+.{digits}f} ({row['standard_error']:.{digits}f})"
    return f"{shown} {verdict(row['low'], row['high'], metric)}"


def table(results: pd.DataFrame, regime: str) -> str:
    """Every rival that has run, ours last: scores, then the paired difference from ours, its standard error and the verdict."""
    found = differences(results, regime)
    titles = [*(TITLES[m].replace("coverage", "covers") for m in METRICS), *(f"{TITLES[m]} - ours (s.e.)" for m in PAIRED)]
    lines = [f"| {regime} | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for name in RIVALS:
        arm = f"{regime} {name}"
        if (results["arm"] == arm).any():
            cells = [_mean(results, arm, m) for m in METRICS] + [_against(found, name, m) for m in PAIRED]
            lines.append(f"| {'**perturbed_vae (ours)**' if name == OURS else name} | {' | '.join(cells)} |")
    if len(found):
        lines += ["", *(f"- {TITLES[m]}: ours is **{standing(found, m)}**." for m in PAIRED)]
    return "\n".join(lines)


def settings(results: pd.DataFrame) -> str:
    """What was chosen on the even pairs, in each regime."""
    lines = ["| rival | singles | doubles | real singles | real doubles |", "|---|---|---|---|---|"]
    regimes = [f"{prefix}{regime}" for prefix in ("", "real ") for regime in REGIMES]
    chosen = results[results["what"].str.startswith("chosen: ")].set_index("arm")["what"].str.removeprefix("chosen: ")
    lines += [f"| {name} | " + " | ".join(chosen.get(f"{r} {name}", "-") for r in regimes) + " |"
              for name, closed in CLOSED.items() if len(closed.grid) > 1]  # fmt: skip
    tuned = results[results["arm"].str.startswith("tune ") & (results["what"] == MEAN) & (results["metric"] == "l2")]
    for name, rival in FAMILY.items():
        mine = tuned[tuned["arm"].isin([f"tune {name}, {told}" for told in rival.settings])].set_index("arm")["value"]
        if len(mine) and len(mine) < len(rival.settings):
            lines.append(f"| {name} | *{len(mine)} of {len(rival.settings)} settings run* | | | |")
        elif len(mine):
            lines.append(f"| {name} | {mine.idxmin().removeprefix(f'tune {name}, ')} | the same | | |")
    return "\n".join(lines)


def widths(results: pd.DataFrame) -> str:
    """CRPS and coverage of the VAE family with their own draws, and with the widths that closed forms are given."""
    lines = ["| singles | CRPS, own draws | 90 % covers | CRPS, fitted widths | 90 % covers |", "|---|---|---|---|---|"]
    for name in FAMILY:
        arm = f"singles {name}"
        if (results["arm"] == arm).any():
            cells = [_mean(results, arm, m, what) for what in (MEAN, FITTED) for m in ("crps", "coverage_90")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "*Not run yet.*"


def figure(results: pd.DataFrame, path: Path) -> None:
    """L2 of every rival minus ours with 95 % intervals over pairs, a panel a regime; what predicts no change is left out."""
    drawn, axes = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained", sharey=True)
    for axis, regime in zip(axes, REGIMES, strict=True):
        found = differences(results, regime)
        found = found[(found["metric"] == "l2") & ~found["method"].isin(UNCHANGED)]
        for row in found.itertuples():
            y = RIVALS.index(str(row.method))
            axis.plot([row.low, row.high], [y, y], color="0.3", linewidth=1.2)
            inside = "black" if row.method in CLOSED else "white"
            axis.plot(row.difference, y, "o", color="black", markerfacecolor=inside, markersize=5)
        axis.axvline(0, color="0.5", linewidth=1, linestyle="--")
        axis.set_title(f"{regime} trained", fontsize=10)
        axis.set_xlabel("L2 on held-out pairs, rival - ours (log1p counts per 10,000);\nright of 0: ours is nearer", fontsize=8)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    for face, told in (("black", "closed form"), ("white", "VAE family")):
        axes[1].plot([], [], "o", color="black", markerfacecolor=face, markersize=5, label=told)
    axes[1].legend(fontsize=8, loc="lower right")
    shown = [name for name in RIVALS if name not in (OURS, *UNCHANGED)]
    axes[0].set_yticks([RIVALS.index(name) for name in shown], shown, fontsize=8)
    axes[0].invert_yaxis()
    drawn.savefig(path, dpi=100)
    plt.close(drawn)


def tables(results: pd.DataFrame) -> dict[str, str]:
    """Every table by the name of its marker."""
    regimes = [f"{prefix}{regime}" for prefix in ("", "real ") for regime in REGIMES]
    made = {regime.replace(" ", "-"): table(results, regime) for regime in regimes}
    return made | {"settings": settings(results), "widths": widths(results)}


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    fill(HERE / "README.md", "rivals", tables(results))
    if len(differences(results, "singles")):
        figure(results, HERE / "rivals.png")


if __name__ == "__main__":
    main()
