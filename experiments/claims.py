"""python -m experiments.claims: the page of claims in experiments/README.md, filled from the results.csv of every experiment."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from .ablations.claims import CLAIMS, COLLAPSED, COLLAPSING, FLAT, used
from .ablations.differences import differences
from .filling import fill, markdown

HERE = Path(__file__).parent
Row = tuple[str, str, str, str, str]  # claim, published, ours, verdict, experiment
SCREEN = "semi-synthetic Norman"
UNTESTED = "not testable here"
DEVELOPED_ON = 2  # seeds of identifiability whose worlds the optimiser was developed on


def word(holds: bool, in_part: bool = False) -> str:
    """The verdict on a claim."""
    return "reproduced" if holds else "in part" if in_part else "not reproduced"


@cache
def results(experiment: str) -> pd.DataFrame:
    return pd.read_csv(HERE / experiment / "results.csv")


def value(experiment: str, arm: str, what: str, metric: str, how: str = "mean", seeds_from: int = 0) -> float:
    """Mean or median over seeds; KeyError for rows that are not there."""
    d = results(experiment)
    found = d[(d["arm"] == arm) & (d["what"] == what) & (d["metric"] == metric) & (d["seed"] >= seeds_from)]["value"]
    if not len(found):
        raise KeyError(f"{experiment}: no {metric} of {what!r} in arm {arm!r}")
    return float(found.agg(how))


def identifiability() -> list[Row]:
    """The paper's Table 1 and what its theorem asks for."""

    def of(arm: str, metric: str, seeds_from: int = 0) -> float:
        return value("identifiability", arm, "model", metric, "median", seeds_from)

    found: list[tuple[str, str, str, str]] = []
    for name, metric, published in (("MCC of z_r", "mcc", 0.86), ("R2 of the responsive block", "r2_responsive", 0.95),
                                    ("R2 of the background block", "r2_background", 0.97)):  # fmt: skip
        every, fresh = of("paper", metric), of("paper", metric, DEVELOPED_ON)
        ours = f"{every:.3f} ({fresh:.3f} on worlds not used in development)"
        found.append((f"{name}, with alignment", f"{published}", ours, word(min(every, fresh) >= published, every >= published)))
    lost = of("paper", "r2_background") - of("paper-no-alignment", "r2_background")
    found.append(("without alignment background R2 falls", "by 0.31", f"by {lost:.2f}", word(lost >= 0.1)))
    kept, floor = of("paper-no-alignment", "mcc"), of("paper-no-alignment", "mcc_floor")
    found.append(("while MCC stays", "0.81", f"{kept:.2f} (floor {floor:.2f})", word(kept >= 0.81)))
    constant, floor = of("fails-constant-variance", "mcc"), of("fails-constant-variance", "mcc_floor")
    found.append(("constant v(u) breaks identifiability (theorem, ii)", "proved for the class",
                  f"MCC {constant:.2f}, floor {floor:.2f}", word(constant <= floor + 0.05)))  # fmt: skip
    return [(*row, "identifiability") for row in found]


def norman() -> list[Row]:
    """Its protocol on the semi-synthetic screen, the metric's own arithmetic, and honest scores beside."""
    ours = value("norman", "semi-synthetic default", "model, mean [doubles]", "rmse_cell_rel")
    rival = value("norman", "semi-synthetic rules", "additive [doubles]", "rmse_cell_rel")
    (l2, r), (l2_told, r_told) = (
        [value("rivals", f"singles {name}", "mean over pairs", metric) for metric in ("l2", "delta_pearson")]
        for name in ("perturbed_vae", "additive")
    )
    sampler, mean = (value("norman", "arithmetic", f"synthetic: {what}", "rmse_cell_rel")
                     for what in ("perfect sampler", "its mean, collapsed"))  # fmt: skip
    return [
        ("relative cell RMSE of Norman doubles", "0.4474", f"{ours:.4f} on {SCREEN}", f"{UNTESTED}: full file not at hand",
         "norman"),
        ("by it addition is no worse than the model", "0.4424 : 0.4474", f"{rival:.4f} : {ours:.4f} on {SCREEN}",
         word(rival <= ours), "norman"),
        ("by L2 (delta Pearson) addition is ahead of the model", "2.54 (0.908) : 3.72 (0.687)",
         f"{l2_told:.2f} ({r_told:.3f}) : {l2:.2f} ({r:.3f}) on {SCREEN}, odd doubles", word(l2_told <= l2), "rivals"),
        ("that RMSE rewards collapse (inferred)", "sampler 0.626, mean 0.449",
         f"perfect sampler {sampler / mean:.3f} x its own mean", word(sampler > mean), "norman"),
    ]  # fmt: skip


def ablations() -> list[Row]:
    """Its Tables 4, 12 and 13, by paired differences over pairs."""
    found, rows = results("ablations"), []
    for claim in CLAIMS:
        table = differences(found, claim.reference, (claim.arm,))
        if not len(table):  # an arm that was not run
            continue
        row = table[table["metric"] == "l2"].iloc[0]
        change, low, high = (100 * row[name] / row["reference_value"] for name in ("difference", "low", "high"))
        holds = abs(change) <= FLAT if claim.flat else row["outcome"] == "worse"
        ours = f"{change:+.1f} % of L2 ({low:+.1f} to {high:+.1f})"
        rows.append((claim.text, f"{claim.published:+.1f} % of RMSE", ours, word(holds), "ablations"))
    shares = [share for share in (used(found, arm) for arm in COLLAPSING) if share == share]
    ours = f"at least {100 * min(shares):.0f} % of its latents in use"
    verdict = word(max(shares) < COLLAPSED, min(shares) < COLLAPSED)
    return [*rows, ("z_b collapses without alignment or with d_r >= d_b", "KL to 0", ours, verdict, "ablations")]


def rivals() -> list[Row]:
    """The VAE family it compares with, as configurations of one program."""
    ours, rows = value("rivals", "singles perturbed_vae", "mean over pairs", "l2"), []
    for name, told, published in (("SAMS-VAE", "sams_vae", 0.4629), ("sVAE+", "svae_plus, shifts added", 0.5664),
                                  ("Discrepancy-VAE", "discrepancy_vae", 0.6082), ("SENA", "sena", 0.8483)):  # fmt: skip
        found = value("rivals", f"singles {told}", "mean over pairs", "l2")
        line = f"L2 {ours:.2f} : {found:.2f} on {SCREEN} (random start)"
        rows.append((f"ahead of {name}", f"RMSE 0.447 : {published:.3f}", line, word(ours < found), "rivals"))
    return rows


def reading() -> list[Row]:
    """Linear probe and programs."""
    latents, pca = (value("probe", "norman", what, "balanced_accuracy")
                    for what in ("responsive, label withheld", "PCA, as many as responsive"))  # fmt: skip
    edges = value("programs", "papalexi restarts", "edges", "identified")
    cosine, p = (value("programs", "papalexi restarts", "interferon, fit 0", metric) for metric in ("cosine", "cosine, p"))
    return [
        ("a linear probe finds the perturbation no better than in PCA", "0.35 : 0.36",
         f"{latents:.2f} : {pca:.2f} on {SCREEN}, label withheld", word(latents <= pca), "probe"),
        ("programs have directed edges that can be read", "TGFBR2 -> SNAI1 and others",
         f"{edges:.0f} edges on which fits agree (real Papalexi)", word(edges > 0), "programs"),
        ("programs are known biology", "7 named programs",
         f"one pathway tested: IFNGR1, IFNGR2, JAK2, STAT1 share one (real Papalexi; cosine {cosine:.2f}, p = {p:.4f})",
         word(False, in_part=p < 0.05), "programs"),
    ]  # fmt: skip


UNTESTABLE: list[Row] = [
    ("single-gene screen of Replogle et al.", "L2 8.296, delta Pearson 0.192", "-", f"{UNTESTED}: no data here", "-"),
    ("ahead of scFoundation, UCE, Geneformer, STATE, GEARS", "RMSE 0.447 : 0.498 to 0.613", "-",
     f"{UNTESTED}: no weights here", "-"),
]  # fmt: skip
PARTS: tuple[Callable[[], list[Row]], ...] = (identifiability, norman, ablations, rivals, reading)


def table() -> str:
    """The page, a row for each claim."""
    head = ["the paper's claim", "published", "ours", "verdict", "`python -m experiments.`"]
    return markdown(head, [row for part in PARTS for row in part()] + UNTESTABLE)


if __name__ == "__main__":
    fill(HERE / "README.md", "claims", {"paper": table()})
