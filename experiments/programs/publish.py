"""python -m experiments.programs.publish: results.csv into the tables of README.md, and the figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..filling import NOT_RUN, fill, markdown
from .arms import FITS, LATENTS
from .biology import FAMILIES, NEXT_TO_IT
from .figure import draw

HERE = Path(__file__).parent
FIRST = {"papalexi": "papalexi restarts", "norman": "norman restarts"}  # whose programs are named
OTHERS = ("resampled cells", "without the targets' own genes", "edges likely a priori")
ARMS = (FIRST["papalexi"], *(f"papalexi {other}" for other in OTHERS), FIRST["norman"], f"norman {OTHERS[0]}")
MATCHED = ("matched", "matched, worst latent of a pair", "matched, share of latents above 0.9")
SHOWN = 5  # targets and genes in a cell


class Results:
    """Values of results.csv (seed 0) by arm, what and metric."""

    def __init__(self, path: Path) -> None:
        self.rows = pd.read_csv(path)
        self.values = self.rows.set_index(["arm", "what", "metric"])["value"].to_dict()
        self.arms = [arm for arm in ARMS if (self.rows["arm"] == arm).any()]

    def value(self, arm: str, what: str, metric: str) -> float:
        """nan where it was not run."""
        return float(self.values.get((arm, what, metric), np.nan))

    def named(self, arm: str, latent: int, kind: str, metric: str) -> Iterator[tuple[str, float]]:
        """Targets or genes of a latent with their values, largest first."""
        prefix = f"latent {latent}, {kind} "
        mine = self.rows[(self.rows["arm"] == arm) & (self.rows["metric"] == metric) & self.rows["what"].str.startswith(prefix)]
        mine = mine.sort_values("value", key=lambda v: -v.abs(), kind="stable")
        yield from zip(mine["what"].str.removeprefix(prefix), mine["value"], strict=True)

    def fits(self, arm: str, group: str, metric: str) -> np.ndarray:
        """Of every fit of an arm."""
        return np.array([self.value(arm, f"{group}, fit {i}", metric) for i in range(FITS)])


def programs(results: Results, arm: str) -> str:
    """One row a latent."""
    head = ["latent", "share of squared effects", "one sign", "found again: restarts", "resampled cells",
            "strongest targets (effect in control-cell sds)", "genes raised", "genes lowered"]  # fmt: skip
    rows = []
    for k in range(LATENTS):
        values = [results.value(arm, f"latent {k}", metric) for metric in ("share", "one_sign")]
        again = [results.value(a, f"latent {k}", "worst_loadings_cosine") for a in (arm, arm.replace("restarts", OTHERS[0]))]
        targets = [f"{t} {v:+.1f}" for t, v in results.named(arm, k, "target", "effect")][:SHOWN]
        genes = list(results.named(arm, k, "gene", "loading"))
        up, down = ([g for g, v in genes if sign * v > 0][:SHOWN] for sign in (1, -1))
        numbers = [str(k), f"{values[0]:.3f}", f"{values[1]:.2f}", *(_number(a) for a in again)]
        rows.append(numbers + [", ".join(names) for names in (targets, up, down)])
    return markdown(head, rows)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def stability(results: Results) -> str:
    """One row an arm: loadings and effects of matched latents, and edges."""
    head = ["four fits", "\\|cosine\\| of loadings: mean", "worst", "above 0.9", "random axes", "correlation of effects: mean",
            "worst", "random axes", "edges > 0.5 in the first fit", "edges agreed"]  # fmt: skip
    rows = []
    for arm in results.arms:
        cells = [results.value(arm, what, "loadings_cosine") for what in (*MATCHED, "random rotation")]
        cells += [results.value(arm, what, "effects_correlation") for what in (*MATCHED[:2], "random rotation")]
        counts = ("above 0.5 in the first fit", "possible", "identified")
        above, possible, agreed = (results.value(arm, "edges", metric) for metric in counts)
        rows.append([arm, *(f"{v:.2f}" for v in cells), f"{above:.0f} of {possible:.0f}", f"{agreed:.0f}"])
    return markdown(head, rows)


def _spread(values: np.ndarray, digits: int) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"


def biology(results: Results) -> str:
    """The tests: four fits, their closed-form start, and the measured shifts."""
    head = ["group, arm", "statistic", "four fits", "random groups, median", "p", "warm start (p)", "measured shifts (p)"]
    rows = []
    for arm in results.arms:
        for group in ("interferon",) if arm.startswith("papalexi") else FAMILIES:
            for metric, title in (("cosine", "mean cosine"), ("share_in_one_latent", "share in one latent")):
                random, p = (results.fits(arm, group, f"{metric}, {what}") for what in ("random groups", "p"))
                others = []
                for whose in ("warm start", "measured shifts"):
                    pair = [results.value(arm, f"{group}, {whose}", name) for name in (metric, f"{metric}, p")]
                    others.append("-" if np.isnan(pair[0]) else f"{pair[0]:.2f} ({pair[1]:.4f})")
                own = _spread(results.fits(arm, group, metric), 2)
                rows.append([f"{group}, {arm}", title, own, _spread(random, 2), _spread(p, 4), *others])
            rows.append(_counts(results, arm, group))
    return markdown(head, rows)


def _counts(results: Results, arm: str, group: str) -> list[str]:
    """One row: where the members' largest effects lie, their sign and gates there, and the neighbour's rank if there is one."""
    metrics = {"members_whose_top_it_is": 0, "members_of_one_sign": 0, "least_inclusion": 3}
    title = "members with their largest effect on the shared latent; of one sign; least inclusion"
    if group == "interferon":
        metrics[f"rank of {NEXT_TO_IT}"], title = 0, f"{title}; rank of {NEXT_TO_IT}"
    start = [f"{results.value(arm, f'{group}, warm start', m):.{digits}f}" for m, digits in metrics.items()]
    fits = [_spread(results.fits(arm, group, m), digits) for m, digits in metrics.items()]
    rank = results.value(arm, f"{group}, measured shifts", f"rank of {NEXT_TO_IT}")
    return [f"{group}, {arm}", title, "; ".join(fits), "", "", "; ".join(start), "-" if np.isnan(rank) else f"rank {rank:.0f}"]


def tables(results: Results) -> dict[str, str]:
    """Every table by the name of its marker."""
    made = {screen: programs(results, arm) if arm in results.arms else NOT_RUN for screen, arm in FIRST.items()}
    return made | {"stability": stability(results), "biology": biology(results)}


def main() -> None:
    results = Results(HERE / "results.csv")
    fill(HERE / "README.md", "programs", tables(results))
    draw(results, HERE / "programs.png")


if __name__ == "__main__":
    main()
