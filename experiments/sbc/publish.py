"""Table in the README and figure from results.csv: python -m experiments.sbc.publish."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from arviz_stats.ecdf_utils import ecdf_pit

from ..filling import NOT_RUN, fill, markdown
from .arms import DRAWS, SVI

HERE = Path(__file__).parent
LEVEL = 0.95


def judged(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each arm and quantity: simulations, whether the ECDF of its ranks stays inside the simultaneous band, how far
    it leaves it, share of truths between the 5 % and 95 % rank, mean and sd of the z score of the truth (0 and 1 if normal)."""
    results, rows = by_guide(results), []
    for (arm, what), part in results[results["metric"] == "rank"].groupby(["arm", "what"], sort=False):
        ranks = part.sort_values("seed")["value"].to_numpy()
        u = (ranks + np.random.default_rng(0).uniform(size=len(ranks))) / (DRAWS + 1)
        _, ecdf, low, high = ecdf_pit(u, LEVEL, n_simulations=1000)
        z = results[(results["arm"] == arm) & (results["what"] == what) & (results["metric"] == "z")]["value"]
        z = z[z.abs() < 1e6]  # draws that are all alike have no sd to divide by
        outside = np.maximum(np.maximum(ecdf - high, low - ecdf), 0).max()
        inner = ((u > 0.05) & (u < 0.95)).mean()
        rows.append((arm, what, len(ranks), bool(outside == 0), float(outside), float(inner), float(z.mean()), float(z.std())))
    return pd.DataFrame(rows, columns=["arm", "what", "n", "inside", "outside", "covers_90", "z_mean", "z_sd"])


def by_guide(results: pd.DataFrame) -> pd.DataFrame:
    """Ranks of the guide that was sampled from, judged on the same fits, as an arm of their own."""
    own = results["metric"].str.endswith(f", {SVI}")
    metric = results["metric"].str.removesuffix(f", {SVI}")
    return results.assign(arm=results["arm"].where(~own, SVI), metric=metric)


def table(judgements: pd.DataFrame) -> str:
    """Markdown: quantities by arm."""
    arms = list(dict.fromkeys(judgements["arm"]))
    counts = {arm: int(judgements[judgements["arm"] == arm]["n"].iloc[0]) for arm in arms}
    heads = " | ".join(f"{arm} ({counts[arm]} simulations)" for arm in arms)
    lines = [f"| quantity | {heads} |", "|---|" + "---|" * len(arms)]
    for what in dict.fromkeys(judgements["what"]):
        cells = []
        for arm in arms:
            one = judgements[(judgements["arm"] == arm) & (judgements["what"] == what)].iloc[0]
            word = "inside" if one["inside"] else "**outside**"
            cells.append(f"{word}, covers {one['covers_90']:.2f}, z {one['z_mean']:+.2f} ± {one['z_sd']:.2f}")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    shares = [f"{judgements[judgements['arm'] == arm]['inside'].sum()} of {(judgements['arm'] == arm).sum()}" for arm in arms]
    return "\n".join([*lines, "| **inside the band** | " + " | ".join(shares) + " |"])


def covered(results: pd.DataFrame) -> str:
    """Markdown: mean share inside 90 % intervals over simulations, with its standard error."""
    part = by_guide(results[results["arm"] == "coverage"])
    if not len(part):
        return NOT_RUN
    rows = []
    for arm, name in ((SVI, SVI), ("coverage", "sampled")):
        shares = [part[(part["arm"] == arm) & (part["what"] == what)]["value"] for what in dict.fromkeys(part["what"])]
        rows.append([name, *(f"{one.mean():.3f} ± {one.std(ddof=1) / len(one) ** 0.5:.3f}" for one in shares)])
    simulations = part["seed"].nunique()
    return markdown([f"untrained pairs, {simulations} simulations", *dict.fromkeys(part["what"])], rows)


def figure(results: pd.DataFrame, arm: str, path: Path) -> None:
    """ECDF of ranks minus uniform, a panel for each quantity, with the 95 % simultaneous band."""
    part = results[(results["arm"] == arm) & (results["metric"] == "rank")]
    names = list(dict.fromkeys(part["what"]))
    columns = 5
    fig, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(11, 8), sharex=True, sharey=True, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        ranks = part[part["what"] == name].sort_values("seed")["value"].to_numpy()
        u = (ranks + np.random.default_rng(0).uniform(size=len(ranks))) / (DRAWS + 1)
        at, ecdf, low, high = ecdf_pit(u, LEVEL, n_simulations=1000)
        axis.fill_between(at, low - at, high - at, color="0.85")
        axis.plot(at, ecdf - at, color="black", linewidth=1)
        axis.set_title(name, fontsize=8)
        axis.set_ylim(-0.3, 0.3)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    fig.supxlabel("rank of the truth among posterior draws, as a share", fontsize=9)
    fig.supylabel("ECDF minus uniform", fontsize=9)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def main() -> None:
    results = pd.read_csv(HERE / "results.csv")
    judgements = judged(results)
    fill(HERE / "README.md", "sbc", {"ranks": table(judgements), "coverage": covered(results)})
    figure(results, "sampled", HERE / "ranks.png")
    print(judgements.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
