"""Paired differences of methods from a reference, metric by metric, and the sentence that they support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.bootstrap import RESAMPLES, PairedDifference
from pvae_pyro.evaluation.scores import HIGHER_IS_BETTER, Scores

Outcome = Literal["better", "worse", "differs", "no difference beyond noise", "cannot tell"]

COMPARED = ("log_score", "crps", "energy_score", "l2", "delta_pearson", "coverage_90")
TITLES = {
    "log_score": "log score",
    "crps": "CRPS",
    "energy_score": "energy score",
    "l2": "L2",
    "delta_pearson": "delta Pearson",
    "coverage_90": "90 % coverage",
}
AIMS = {"coverage_90": 0.90}
"""Metrics that should have a value instead of being large or small."""

FEW = 10  # below so many conditions a sentence says that they are few
BATCHES = 5  # of draws, to see what another seed would change
NARROW = 20  # below so many conditions percentile intervals are too narrow
RELEVANT = 0.005  # smaller differences are none, whatever their noise
_ABSOLUTE = frozenset({"log_score", *AIMS})  # where a share of the reference's value would mean nothing


def difference_table(
    scores: Scores,
    methods: Sequence[str],
    reference: str,
    metrics: Sequence[str] = COMPARED,
    resamples: int = RESAMPLES,
    seed: int = 0,
    draw_error: Mapping[tuple[str, str, str], float] | None = None,
) -> pd.DataFrame:
    """Every method against the reference, one row per stratum, method and metric that both have.

    Columns: stratum, metric, method, reference, value and reference_value (means over the paired conditions),
    difference (value - reference_value), standard_error over conditions, draw_error, low and high (95 %
    interval), conditions (their number), share_better (of conditions; ties count half), outcome. Strata are
    ordered from combinations of seen targets to single targets. Standard errors come from a paired bootstrap
    over conditions, made unbiased by sqrt(n / (n - 1)); the interval is the bootstrap's from 20 conditions on,
    the standard error times Student's t below, where percentiles are too narrow; one condition has neither
    (nan). draw_error: the ``draw_errors`` of the scores, which widen the intervals; nan where there are none.
    """
    rows = []
    for stratum in ordered_strata(scores):
        part = scores.rows[scores.rows["stratum"] == stratum]
        for method in methods:
            if method == reference:
                continue
            for metric in metrics:
                try:
                    paired = scores.paired(method, reference, metric, stratum, resamples, seed)
                except InputError:  # a point prediction has no such score
                    continue
                both = part[part["metric"] == metric].pivot(
                    index="condition", columns="method", values="value"
                )
                pair = both[[method, reference]].dropna()
                value, other = pair.mean()
                drawn = (draw_error or {}).get((stratum, metric, method), float("nan"))
                error, low, high = spread(paired, drawn)
                doubt = _reach(pair.sum(axis=1)) if metric in AIMS else 0.0
                rows.append(
                    {
                        "stratum": stratum,
                        "metric": metric,
                        "method": method,
                        "reference": reference,
                        "value": float(value),
                        "reference_value": float(other),
                        "difference": paired.difference,
                        "standard_error": error,
                        "draw_error": drawn,
                        "low": low,
                        "high": high,
                        "conditions": paired.conditions,
                        "share_better": paired.better,
                        "outcome": outcome(metric, float(value), float(other), low, high, doubt),
                    }
                )
    return pd.DataFrame(rows)


def draw_errors(batches: Sequence[Scores], reference: str) -> dict[tuple[str, str, str], float]:
    """Standard error, over posterior draws, of each mean difference from the reference.

    batches: scores of the same methods on the same conditions from disjoint sets of draws of equal size. All
    conditions share the draws of the globals, so the error that few draws leave is common to them and no
    resampling of conditions shows it: it is the spread of the batches' differences over sqrt(batches).
    Keys are stratum, metric and method.
    """
    rows = pd.concat([one.rows.assign(batch=number) for number, one in enumerate(batches)])
    means = rows.groupby(["batch", "stratum", "metric", "method"])["value"].mean().unstack("method")
    gaps = means.sub(means[reference], axis=0)
    errors = gaps.groupby(level=["stratum", "metric"]).std(ddof=1) / np.sqrt(len(batches))
    return {
        (stratum, metric, method): float(errors[method].iloc[row])
        for row, (stratum, metric) in enumerate(errors.index)
        for method in errors.columns
    }


def outcome(
    metric: str, value: float, reference: float, low: float, high: float, doubt: float = 0.0
) -> Outcome:
    """What an interval (low, high) of the paired difference says about two mean scores.

    Beyond noise is a difference whose interval excludes zero and that is no smaller than
    ``smallest_relevant``. A coverage is better where it is nearer to its level; where one is above and one
    below, value + reference must differ from twice the level by more than doubt, half the width of the sum's
    95 % interval, or the two merely differ. "cannot tell" without an interval.
    """
    if np.isnan(low) or np.isnan(high):
        return "cannot tell"
    difference = value - reference
    if low <= 0 <= high or abs(difference) < smallest_relevant(metric, reference):
        return "no difference beyond noise"
    if metric in AIMS:
        off, other = value - AIMS[metric], reference - AIMS[metric]
        if off * other < 0 and abs(off + other) <= doubt:
            return "differs"
        return "better" if abs(off) < abs(other) else "worse"
    return "better" if (difference > 0) == (metric in HIGHER_IS_BETTER) else "worse"


def smallest_relevant(metric: str, reference: float) -> float:
    """Size below which a difference is none.

    0.5 % of the reference's score, or 0.005 in the log score (nats per gene) and in coverage.
    """
    return RELEVANT * (1.0 if metric in _ABSOLUTE else abs(reference))


def sentences(table: pd.DataFrame) -> tuple[str, ...]:
    """What a ``difference_table`` supports, one text per stratum and method."""
    groups = table.groupby(["stratum", "method"], sort=False) if len(table) else ()
    return tuple(_sentence(list(part.itertuples(index=False))) for _, part in groups)


def markdown_tables(table: pd.DataFrame) -> str:
    """A ``difference_table`` as Markdown, a table per stratum and method."""
    blocks = []
    groups = table.groupby(["stratum", "method", "reference"], sort=False) if len(table) else ()
    for (stratum, method, reference), part in groups:
        name, other = cell(str(method)), cell(str(reference))
        lines = [
            f"### {stratum}: {method} against {reference}",
            "",
            f"{counted(int(part['conditions'].max()))}, {method} - {reference}.",
            "",
            f"| metric | {name} | {other} | difference (standard error) | 95 % interval | better on | {name} is |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in part.itertuples(index=False):
            values: Any = row
            cells = [
                title(values.metric),
                f"{values.value:.4g}",
                f"{values.reference_value:.4g}",
                f"{values.difference:+.3g} ({_error(values.standard_error)})",
                "-" if np.isnan(values.low) else f"{values.low:+.3g} to {values.high:+.3g}",
                f"{100 * values.share_better:.0f} %",
                str(values.outcome),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def ordered_strata(scores: Scores) -> tuple[str, ...]:
    """Strata, the main one first: combinations of which most targets were seen, single targets last."""
    keys = {}
    for name, rows in scores.rows.groupby("stratum", sort=False):
        targets, seen = int(rows["n_targets"].max()), int(rows["seen"].max())
        keys[str(name)] = (targets < 2, targets - seen, targets, str(name))
    return tuple(sorted(keys, key=lambda name: keys[name]))


def title(metric: str) -> str:
    """Name of a metric in words."""
    return TITLES.get(metric, metric.replace("_", " "))


def counted(conditions: int) -> str:
    """A number of conditions in words."""
    return f"{conditions} condition{'' if conditions == 1 else 's'}"


def cell(text: str) -> str:
    """Text that does not break a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def spread(paired: PairedDifference, draw_error: float = float("nan")) -> tuple[float, float, float]:
    """Standard error over conditions, and 95 % interval of a paired difference; nan for one condition.

    draw_error, of BATCHES batches, widens the interval: independent errors add in squares.
    """
    count = paired.conditions
    if count < 2:
        return float("nan"), float("nan"), float("nan")
    # the bootstrap divides by n where the unbiased variance divides by n - 1
    error = paired.standard_error * float(np.sqrt(count / (count - 1)))
    below, above = paired.difference - paired.low, paired.high - paired.difference
    if count < NARROW:
        below = above = error * float(student.ppf(0.975, count - 1))
    drawn = 0.0 if np.isnan(draw_error) else draw_error * float(student.ppf(0.975, BATCHES - 1))
    return (
        error,
        paired.difference - float(np.hypot(below, drawn)),
        paired.difference + float(np.hypot(above, drawn)),
    )


def _reach(values: pd.Series[float]) -> float:
    """Half the width of a 95 % interval of the mean, infinite for one value."""
    count = len(values)
    if count < 2:
        return float("inf")
    return float(values.std(ddof=1) / np.sqrt(count) * student.ppf(0.975, count - 1))


def _sentence(rows: Sequence[Any]) -> str:
    method, reference, count = rows[0].method, rows[0].reference, max(row.conditions for row in rows)
    where = f"On {counted(count)} ({rows[0].stratum})"
    if all(row.outcome == "cannot tell" for row in rows):
        return f"{where} nothing can be told about {method} against {reference}: one condition has no spread."
    said = {name: [_phrase(row) for row in rows if row.outcome == name] for name in ("better", "worse")}
    apart = [_phrase(row) for row in rows if row.outcome == "differs"]
    same = [title(row.metric) for row in rows if row.outcome == "no difference beyond noise"]
    few = f" With {count} conditions only a large difference could show." if count < FEW else ""
    if len(same) == len(rows):
        return (
            f"{where} there is no difference beyond noise between {method} and {reference}, on any of "
            f"{_and(same)}.{few}"
        )
    parts = [f"{name} than {reference} on {_and(phrases)}" for name, phrases in said.items() if phrases]
    text = f"{method} is {' and '.join(parts)}" if parts else ""
    if apart:
        text += f"{'; ' if text else ''}{method} and {reference} differ on {_and(apart)}, one above its level and one below"
    if same:
        text += f"; there is no difference beyond noise on {_and(same)}"
    return f"{where} {text}.{few}"


def _phrase(row: Any) -> str:
    values = f"{row.value:.3g} against {row.reference_value:.3g}, " if row.metric in AIMS else ""
    return f"{title(row.metric)} ({values}{row.difference:+.3g}, standard error {_error(row.standard_error)})"


def _error(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2g}"


def _and(parts: Sequence[str]) -> str:
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"
