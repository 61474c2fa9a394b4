"""What the paper says of its own ablations (its tables 4, 12 and 13, doubles), and whether that holds here."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..filling import markdown
from .arms import PAPER
from .differences import differences

BEST = f"sizes: {PAPER['responsive']} + {PAPER['background']}"
FLAT = 2.0  # per cent of L2 that count as flat; published 0.4 % of the RMSE between 10 and 105 dimensions
COLLAPSED = 0.1  # share of background latents in use below which the background has collapsed


@dataclass(frozen=True)
class Claim:
    """`arm` is said to be worse than `reference` (or as good, if `flat`) by `published`, in per cent of the RMSE of doubles."""

    text: str
    arm: str
    reference: str
    published: float
    flat: bool = False


CLAIMS = (
    Claim("alignment at 0.05 is better than none", "alignment: none", "alignment: pairwise, weight 0.05", 3.4),
    Claim("the same, all else as in the paper", "as in the paper, alignment: none", "as in the paper", 3.4),
    Claim("d_r < d_b is better than d_r = d_b", "sizes: 53 + 52", BEST, 3.4),
    Claim("d_r < d_b is better than d_r > d_b", "sizes: 85 + 20", BEST, 3.4),
    Claim("10 dimensions are as good as 105", "sizes: 2 + 8", BEST, 0.4, flat=True),
)
COLLAPSING = ("alignment: none", "as in the paper, alignment: none", "sizes: 53 + 52", "sizes: 85 + 20")


def claim_table(results: pd.DataFrame) -> str:
    """Markdown: each claim that both arms were run for, published and found, with a verdict by the paired interval."""
    rows = []
    for claim in CLAIMS:
        found = differences(results, claim.reference, (claim.arm,))
        if not len(found):
            continue
        row = found[found["metric"] == "l2"].iloc[0]
        change, low, high = (100 * row[name] / row["reference_value"] for name in ("difference", "low", "high"))
        holds = abs(change) <= FLAT if claim.flat else row["outcome"] == "worse"
        here = f"{change:+.1f} % ({low:+.1f} to {high:+.1f})"
        rows.append([claim.text, f"{claim.published:+.1f} %", here, _word(holds)])
    for arm in COLLAPSING:
        share = used(results, arm)
        if share == share:
            found_share = f"{100 * share:.0f} % of its latents in use"
            rows.append([f"z_b collapses with {arm!r}", "KL to 0", found_share, _word(share < COLLAPSED)])
    return markdown(["claim", "published, RMSE", "here, L2 (95 %)", "holds here"], rows)


def used(results: pd.DataFrame, arm: str) -> float:
    """Share of background latents whose mean varies between control cells, mean over seeds; nan where not run."""
    mine = results[(results["arm"] == arm) & (results["what"] == "fit")].groupby("metric")["value"].mean()
    return float(mine.get("active_background", float("nan")) / mine.get("background", float("nan")))


def _word(holds: bool) -> str:
    return "yes" if holds else "no"
