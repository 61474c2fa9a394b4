"""The section of further scores: other point metrics, the combinations that add up least, and legacy scores apart."""

from __future__ import annotations

import numpy as np

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.baselines import ADDITIVE, KERNEL_RIDGE, NO_CHANGE, SHRUNK_PRIOR
from pvae_pyro.evaluation.interactions import measured_interactions, resistant
from pvae_pyro.evaluation.legacy import LEGACY
from pvae_pyro.evaluation.panel import FURTHER, LARGE_IS_GOOD
from pvae_pyro.evaluation.scores import Scores, to_markdown
from pvae_pyro.evaluation.simple import TRAIN_MEAN
from pvae_pyro.report.scoring import MODEL, WARM_START, Scored

SHOWN_METHODS = (MODEL, WARM_START, ADDITIVE, SHRUNK_PRIOR, KERNEL_RIDGE, TRAIN_MEAN, NO_CHANGE)
TITLES = {
    "l2_top1000": "L2, top 1,000",
    "delta_slope": "delta slope",
    "delta_pearson_perturbed": "delta Pearson, perturbed",
    "delta_cosine_perturbed": "delta cosine, perturbed",
    "skill_over_additive": "skill over additive",
    "pds_cosine": "PDS cosine",
    "pds_cosine_hard": "PDS cosine, with own singles",
    "centroid_accuracy": "centroid accuracy",
    "wmse": "WMSE",
    "r2_delta_weighted": "weighted R2 delta",
    "log_fold_cosine": "cosine logFC",
    "log_fold_error": "LFC-NMAE",
    "de_overlap": "DES",
    "r2_mean": "R2 of means",
    "legacy_r2_mean": "legacy R2 of means (swapped, clipped)",
    "legacy_mse_top20_de": "legacy MSE, top 20 DE",
    "energy_score": "energy score",
    "variogram_score": "variogram score",
    "log_score": "log score",
    "interval_score_90": "interval score, 90 %",
}
_PROPER = ("energy_score", "variogram_score", "log_score", "interval_score_90")
_FEWEST_RESISTANT = 3


def further_section(scored: Scored, seed: int = 0) -> str:
    """Markdown without its heading, for the main stratum."""
    parts = [
        "Means over conditions; genes of the perturbed targets are left out, but for the proper and legacy scores. What each "
        "says, and its formula: docs/scores.md. Every condition's values: metrics.csv.",
        _means(scored, (*_PROPER, *FURTHER)),
        _resistant(scored, seed),
        "Legacy scores, for comparison with papers; no model is chosen by them. Note what no change gets.",
        _means(scored, LEGACY),
    ]
    return "\n\n".join(part for part in parts if part)


def resistant_scores(scored: Scored) -> Scores | None:
    """Scores of the third of the main stratum's combinations that resist the additive rule; None for fewer than three."""
    main = scored.strata[0]
    names = [name for name in scored.members(main) if "+" in name]
    try:
        found = measured_interactions(scored.truth.restrict(names), scored.training) if names else None
    except InputError:
        found = None
    if found is None:
        return None
    chosen = [name for name, hard in zip(found.conditions, resistant(found.e, found.se), strict=True) if hard]
    if len(chosen) < _FEWEST_RESISTANT:
        return None
    rows = scored.scores.rows
    rows = rows[rows["condition"].isin(chosen) & rows["method"].isin(SHOWN_METHODS)]
    return Scores(rows.assign(stratum=f"{main}, resistant"))


def _means(scored: Scored, metrics: tuple[str, ...]) -> str:
    """Metrics by row, methods by column, as means over the main stratum."""
    main = scored.strata[0]
    rows = scored.scores.rows
    chosen = Scores(rows[(rows["stratum"] == main) & rows["method"].isin(SHOWN_METHODS)])
    table = chosen.table(main, resamples=1, metrics=metrics)
    methods = [name for name in SHOWN_METHODS if (table["method"] == name).any()]
    value = dict(zip(zip(table["method"], table["metric"], strict=True), table["mean"].tolist(), strict=True))
    lines = [f"| | {' | '.join(methods)} | |", f"|---|{'---|' * (len(methods) + 1)}"]
    for metric in metrics:
        if not any((method, metric) in value for method in methods):
            continue
        cells = [value.get((method, metric), np.nan) for method in methods]
        shown = ["-" if np.isnan(one) else f"{one:.4g}" for one in cells]
        lines.append(f"| {TITLES[metric]} | {' | '.join(shown)} | {_aim(metric)} |")
    return "\n".join(lines)


def _aim(metric: str) -> str:
    if metric == "delta_slope":
        return "1 is right"
    large = metric in LARGE_IS_GOOD or metric in ("log_score", "legacy_r2_mean")
    return "larger is better" if large else "smaller is better"


def _resistant(scored: Scored, seed: int) -> str:
    chosen = resistant_scores(scored)
    if chosen is None:
        return ""
    return (
        "Resistant combinations: the third whose measured interaction is largest, sampling noise taken off. They are picked by "
        "the outcome, where adding fails most, which is hard on additive; they are a part of the table above, not a stratum "
        "beside it.\n\n" + to_markdown(chosen.table(seed=seed)).strip()
    )
