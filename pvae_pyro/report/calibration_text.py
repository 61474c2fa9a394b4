"""The section of a report on calibration: words, tables and figures of a ``Calibration``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvae_pyro.evaluation.baselines import ORACLE
from pvae_pyro.evaluation.metrics import LEVELS
from pvae_pyro.report.calibrating import CONFORMAL, PROFILE, STRATUM, Calibration
from pvae_pyro.report.calibration_plot import (
    call_figure,
    group_figure,
    pit_figure,
    risk_figure,
    sign_figure,
    width_figure,
)
from pvae_pyro.report.scoring import MODEL

LEVEL = 0.90
CAPTIONS = {
    "calibration_groups.png": (
        "Coverage of 90 % intervals by group, made from training and prediction alone; tenths of width and of control "
        "expression group genes, the others conditions. Bars: 95 % over resampled conditions."
    ),
    "calibration_pit.png": (
        "Distribution of the measured values within their predicted distributions, minus the uniform one; bands for all "
        "points at once, from resampled conditions."
    ),
    "calibration_signs.png": "Does a gene that goes up with probability p go up in a share p of cases.",
    "calibration_risk.png": "Does the model know where it is wrong: error of the conditions it doubts least.",
    "calibration_widths.png": (
        "Coverage against width: of two methods with equal coverage the one further left says more."
    ),
    "calibration_interactions.png": (
        "Reliability of what the model says of interactions e (a combination minus the sum of its singles, per gene), the "
        "measurement's noise included."
    ),
}


def calibration_figures(found: Calibration, unit: str) -> dict[str, Figure]:
    """File name -> figure; interactions only where they were predicted."""
    subject = f"{found.conditions} condition{'' if found.conditions == 1 else 's'}, {found.stratum}"
    methods = list(dict.fromkeys(found.coverage["method"]))
    risk = next(iter(found.risk.values()))
    figures = {
        "calibration_groups.png": group_figure(
            found.coverage[found.coverage["group"] != STRATUM],
            [name for name in (MODEL, CONFORMAL) if name in methods],
            LEVEL,
            subject,
        ),
        "calibration_pit.png": pit_figure(found.pit, subject),
        "calibration_signs.png": sign_figure(found.signs, found.signs_curve, subject),
        "calibration_risk.png": risk_figure(found.risk, float(risk[-1]), "L2 to the measured mean", subject),
        "calibration_widths.png": width_figure(found.coverage, methods, unit, subject),
    }
    if found.calls is not None and found.interactions is not None:
        count = int(found.interactions["combinations"].max())
        figures["calibration_interactions.png"] = call_figure(
            found.calls, unit, f"{count} untrained combinations"
        )
    return figures


def calibration_section(found: Calibration, figures: Sequence[str]) -> str:
    """Markdown without its heading; figures are the names of those written beside it."""
    parts = [
        f"On {found.conditions} condition{'' if found.conditions == 1 else 's'} ({found.stratum}). All intervals come from "
        "resampling conditions. Every number is in calibration.csv.",
        _coverage_table(found),
        _groups_sentence(found.coverage),
        _conformal_sentence(found),
        _pit_sentence(found.pit[MODEL]),
        _sign_sentence(found.signs),
        _ranking(found.ranking),
    ]
    if found.interactions is not None:
        parts.append(_interactions(found.interactions))
    parts += [f"![{name.removesuffix('.png')}]({name})\n\n{CAPTIONS[name]}" for name in figures]
    return "\n\n".join(part for part in parts if part)


def _coverage_table(found: Calibration) -> str:
    """Overall and by stratum; widths are relative to those of the first additive row."""
    table = found.coverage
    overall = table[table["group"].isin(["overall", STRATUM])]
    titles = " | ".join(f"{100 * level:.0f} %" for level in LEVELS)
    lines = [
        f"| intervals | {titles} | mean width (90 %) | relative to probabilistic additive |",
        f"|---|{'---|' * (len(LEVELS) + 2)}",
    ]
    for (method, _, label), part in overall.groupby(["method", "group", "label"], sort=False):
        name = f"{'flattering: ' if str(method).endswith(ORACLE) else ''}{method}"
        name += "" if label == "all" else f", {label}"
        records: list[Any] = list(part.itertuples())
        rows = {round(row.level, 4): row for row in records}
        cells = [
            f"{rows[level].coverage:.3f} ({rows[level].low:.3f} to {rows[level].high:.3f})"
            if level in rows
            else "-"
            for level in LEVELS
        ]
        at = rows.get(LEVEL)
        cells.append("-" if at is None else f"{at.width:.3f}")
        cells.append("-" if at is None or np.isnan(at.relative_width) else f"{at.relative_width:.2f}")
        lines.append(f"| {' | '.join([_cell(name), *cells])} |")
    return "\n".join(lines)


def _groups_sentence(table: pd.DataFrame) -> str:
    """Groups whose 90 % intervals are wrong beyond noise; of so many groups some are by chance."""
    part = table[(table["method"] == MODEL) & np.isclose(table["level"], LEVEL)]
    part = part[~part["group"].isin(["overall", STRATUM])]
    off = part[(part["high"] < LEVEL) | (part["low"] > LEVEL)]
    records: list[Any] = list(off.itertuples())
    told = [f"{row.group} {row.label} ({row.coverage:.3f})" for row in records]
    if not told:
        return f"By group, none of {len(part)} has 90 % intervals that are wrong beyond noise."
    low, high = part["coverage"].min(), part["coverage"].max()
    return (
        f"By group, coverage of the 90 % intervals runs from {low:.3f} to {high:.3f}; wrong beyond noise in {len(off)} of "
        f"{len(part)} groups (one in twenty by chance): {'; '.join(told)}. Tenths are numbered from the lowest."
    )


def _conformal_sentence(found: Calibration) -> str:
    raw = found.profile[MODEL]
    told = f"{100 * raw:.0f} % of the conditions have 90 % of their genes inside the 90 % intervals"
    if CONFORMAL not in set(found.coverage["method"]):
        return f"{told}. There are too few conditions for group conformal intervals."
    if CONFORMAL in found.profile:
        told += f", {100 * found.profile[CONFORMAL]:.0f} % with the conformal factor made for that ({PROFILE:.0%} is its aim)"
    return (
        f"{told}. The row '{CONFORMAL}' is post hoc: each condition's widths are multiplied by what all others needed. It takes "
        "measured conditions like those to be predicted, and promises coverage on average over them, not for each."
    )


def _pit_sentence(table: pd.DataFrame) -> str:
    if table["low"].isna().any():
        return ""
    out = (table["low"] > 0) | (table["high"] < 0)
    reach = float(table["difference"].abs().max())
    how = "otherwise than they should, beyond noise" if out.any() else "as they should, within noise"
    return f"The measured values lie in the predicted distributions {how} (largest gap {reach:.3f})."


def _sign_sentence(table: pd.DataFrame) -> str:
    sure = table[(table["from"] >= 0.9 - 1e-9) | (table["to"] <= 0.1 + 1e-9)]
    if not len(sure):
        return "No gene's direction is called with 90 % or more."
    right = np.where(sure["predicted"] > 0.5, sure["observed"], 1 - sure["observed"])
    said = np.where(sure["predicted"] > 0.5, sure["predicted"], 1 - sure["predicted"])
    cases = sure["cases"].to_numpy(float)
    return (
        f"Directions called with 90 % or more: {100 * cases.sum() / table['cases'].sum():.0f} % of all; "
        f"{np.average(right, weights=cases):.3f} of them are right where {np.average(said, weights=cases):.3f} was said."
    )


def _ranking(table: pd.DataFrame) -> str:
    lines = [
        "Ranking of conditions, which is not calibration: mean error (L2) over all shares of conditions kept, least doubtful "
        "first (AURC).",
        "",
        "| doubt from | AURC | lost of what an oracle gains | rank correlation with error | the same, effect size taken out |",
        "|---|---|---|---|---|",
    ]
    records: list[Any] = list(table.itertuples())
    for row in records:
        cells = [f"{row.aurc:.3f} ({row.low:.3f} to {row.high:.3f})"]
        cells += [
            "-" if np.isnan(value) else f"{value:.2f}"
            for value in (row.lost, row.spearman, row.partial_spearman)
        ]
        lines.append(f"| {' | '.join([str(row.doubt), *cells])} |")
    return "\n".join(lines)


def _interactions(table: pd.DataFrame) -> str:
    names = {
        "skill": "skill (0 additive, 1 perfect)",
        "slope": "slope of measured on predicted (1 is right)",
        "auprc": "AUPRC of clear interactions",
        "prevalence": "the same by chance (their prevalence)",
        "sign_accuracy": "sign right among the clear ones",
    }
    lines = [
        "Interactions, what an untrained combination does beyond the sum of its singles, gene by gene. Resistant: the third "
        "of the combinations whose measured interaction is largest, noise taken off; picked by the outcome, so it stands "
        "apart. Measured and predicted interactions share the noise of the trained singles, which flatters skill and slope "
        "where singles have few cells.",
        "",
        "| | all | resistant |",
        "|---|---|---|",
    ]
    records: list[Any] = list(table.itertuples())
    found = {(row.stratum, row.metric): row for row in records}
    for metric, name in names.items():
        cells = []
        for stratum in ("all", "resistant"):
            row = found.get((stratum, metric))
            if row is None or np.isnan(row.value):
                cells.append("-")
            else:
                cells.append(f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
