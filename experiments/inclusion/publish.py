"""python -m experiments.inclusion.publish: the table of README.md from results.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..filling import fill, markdown
from .arms import FRESH

HERE = Path(__file__).parent
ROWS = (  # row, arm, what, metric, what was asked
    ("null gates > 0.5, **semi-synthetic** Norman (12 nulls of 150 cells)", "null, semi-synthetic Norman", "null perturbations",
     "share_above_half", "<= 0.01"),
    ("median inclusion of these", "null, semi-synthetic Norman", "null perturbations", "median", "-"),
    ("real gates > 0.5, Norman", "null, semi-synthetic Norman", "real perturbations", "share_above_half", "-"),
    ("null gates > 0.5, real Papalexi (12 nulls of 85 cells)", "null, Papalexi", "null perturbations", "share_above_half",
     "<= 0.01"),
    ("median inclusion of these", "null, Papalexi", "null perturbations", "median", "-"),
    ("real gates > 0.5, Papalexi", "null, Papalexi", "real perturbations", "share_above_half", "-"),
    ("simulated: AUPRC (prevalence 0.26)", "simulated", "simulated", "auprc", "-"),
    ("simulated: Brier score", "simulated", "simulated", "brier", "-"),
    *((f"simulated: false discoveries at {a}", "simulated", f"Bayesian FDR {a}", "realised", f"{a}") for a in (0.05, 0.1, 0.2)),
    ("simulated: power at 0.1", "simulated", "Bayesian FDR 0.1", "power", "-"),
)  # fmt: skip


def table(results: pd.DataFrame) -> str:
    """Mean over seeds of the default, also on splits that nothing was chosen on, and of the prior without activity."""
    fresh = [seed in FRESH.get(arm, ()) for arm, seed in zip(results["arm"], results["seed"], strict=True)]
    by = ["arm", "what", "metric"]
    seen, unseen = (part.groupby(by)["value"].mean() for part in (results[~pd.Series(fresh)], results[pd.Series(fresh)]))
    rows = []
    for row, arm, what, metric, asked in ROWS:
        fresh_value = f"{unseen[arm, what, metric]:.3f}" if arm in FRESH else "-"
        without = f"{seen[arm + ', no activity', what, metric]:.3f}"
        rows.append([row, f"{seen[arm, what, metric]:.3f}", fresh_value, without, asked])
    head = ["mean over seeds (three; one for Norman)", "default", "default, fresh splits", "without activity", "asked"]
    return markdown(head, rows)


if __name__ == "__main__":
    fill(HERE / "README.md", "inclusion", {"rates": table(pd.read_csv(HERE / "results.csv"))})
