"""What the scores say in plain words: better, no difference beyond noise, or worse, by paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.bootstrap import RESAMPLES
from pvae_pyro.evaluation.differences import NARROW
from pvae_pyro.evaluation.differences import TITLES as METRIC_TITLES
from pvae_pyro.evaluation.differences import outcome as outcome_of
from pvae_pyro.evaluation.differences import spread as spread_of
from pvae_pyro.evaluation.scores import HIGHER_IS_BETTER, Scores

Outcome = Literal["beats", "no difference beyond noise", "loses to", "cannot tell"]

JUDGED = ("l2", "delta_pearson", "mse_ratio", "crps")
TITLES = METRIC_TITLES | {"mse_ratio": "MSE ratio"}
DIGITS = {"l2": 2, "delta_pearson": 3, "mse_ratio": 3, "crps": 4}
FEW = NARROW
SMALL = ", or below 0.5 %"
_SAID: Mapping[str, Outcome] = {
    "better": "beats",
    "worse": "loses to",
    "no difference beyond noise": "no difference beyond noise",
    "cannot tell": "cannot tell",
}


@dataclass(frozen=True)
class Comparison:
    """A method against a reference on one metric in one stratum; difference = method - reference."""

    metric: str
    reference: str
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    better: float
    conditions: int
    outcome: Outcome

    @property
    def small(self) -> bool:
        """Whether the interval excludes zero, but the difference is too small to count."""
        return self.outcome == "no difference beyond noise" and (self.low > 0 or self.high < 0)


def compare(
    scores: Scores,
    means: pd.DataFrame,
    method: str,
    reference: str,
    metric: str,
    stratum: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison | None:
    """Paired comparison on the conditions of a stratum; None where one side has no such score.

    The outcome is decided by whether the 95 % interval of the paired difference excludes zero, and the
    difference is at least half a per cent of the reference's score: less comes from other draws. Below 20
    conditions percentile intervals are too narrow; the interval is then the bootstrap standard error, made
    unbiased, times Student's t quantile. One condition decides nothing.
    means: `Scores.table`.
    """
    try:
        paired = scores.paired(method, reference, metric, stratum, resamples, seed)
    except InputError:
        return None
    _, low, high = spread_of(paired)
    theirs = _mean(means, stratum, reference, metric)
    outcome = _SAID[outcome_of(metric, theirs + paired.difference, theirs, low, high)]
    return Comparison(
        metric=metric,
        reference=reference,
        ours=_mean(means, stratum, method, metric),
        theirs=theirs,
        difference=paired.difference,
        low=low,
        high=high,
        better=paired.better,
        conditions=paired.conditions,
        outcome=outcome,
    )


def against_best(
    scores: Scores,
    means: pd.DataFrame,
    method: str,
    candidates: Sequence[str],
    stratum: str,
    metrics: Sequence[str] = JUDGED,
    seed: int = 0,
) -> list[Comparison]:
    """Compare with the best candidate of each metric, chosen on these very conditions (in its favour)."""
    found = []
    for metric in metrics:
        best = best_of(means, candidates, metric, stratum)
        comparison = compare(scores, means, method, best, metric, stratum, seed) if best else None
        if comparison:
            found.append(comparison)
    return found


def best_of(means: pd.DataFrame, candidates: Sequence[str], metric: str, stratum: str) -> str | None:
    """The candidate with the best mean of a metric, the first of equals; None where none has one."""
    values = {name: _mean(means, stratum, name, metric) for name in candidates}
    values = {name: value for name, value in values.items() if not np.isnan(value)}
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    return min(values, key=lambda name: sign * values[name]) if values else None


def verdict(comparisons: Sequence[Comparison], stratum: str) -> str:
    """One sentence: on which metrics the model beats, equals or loses to the best baseline."""
    if not comparisons:
        return f"On the stratum '{stratum}' there is no baseline to compare the model with."
    count = max(one.conditions for one in comparisons)
    plural = "" if count == 1 else "s"
    groups: Mapping[str, list[str]] = {
        outcome: [TITLES[one.metric] for one in comparisons if one.outcome == outcome]
        for outcome in ("beats", "no difference beyond noise", "loses to", "cannot tell")
    }
    if groups["cannot tell"]:
        return (
            f"On {count} condition{plural} ({stratum}) no difference between the model and the best baseline "
            "can be told from noise."
        )
    phrases = {
        "beats": "beats the best baseline on {}",
        "no difference beyond noise": "shows no difference beyond noise from the best baseline on {}",
        "loses to": "loses to the best baseline on {}",
    }
    said = [phrase.format(_and(groups[name])) for name, phrase in phrases.items() if groups[name]]
    return f"On {count} condition{plural} ({stratum}) the model {_and(said)}."


def training_sentence(comparisons: Sequence[Comparison]) -> str:
    """Whether training improved on its own start, from comparisons of the model with the warm start."""
    words = {
        "beats": "training pays",
        "no difference beyond noise": "training makes no difference beyond noise",
        "loses to": "training makes it worse",
        "cannot tell": "whether training pays cannot be told from noise",
    }
    parts = []
    for one in comparisons:
        said = f"{words[one.outcome]}{SMALL if one.small else ''}"
        parts.append(
            f"on {TITLES[one.metric]} {said} ({number(one.ours, one.metric)} after it, "
            f"{number(one.theirs, one.metric)} before; difference {spread(one)})"
        )
    return f"Against its own closed-form start, {_and(parts)}." if parts else ""


def coverage_sentence(shares: ArrayLike, low: float, high: float, level: float = 0.90) -> str:
    """Whether intervals of one level are right, too narrow or too wide.

    shares: coverage per condition; low, high: bootstrap interval of their mean, used from 20 conditions on.
    """
    values = np.asarray(shares, float)
    values = values[~np.isnan(values)]
    count, name = len(values), f"{100 * level:.0f} %"
    if not count:
        return f"The coverage of its {name} intervals is undefined."
    mean = float(values.mean())
    told = f"Its {name} intervals hold {mean:.3f} of the measured values"
    if count == 1:
        return f"{told}, which one condition cannot judge."
    if count < FEW:
        error = float(values.std(ddof=1) / np.sqrt(count) * student.ppf(0.975, count - 1))
        low, high = max(mean - error, 0.0), min(mean + error, 1.0)
    judged = f"in agreement with {name} within noise"
    if high < level or low > level:
        judged = "too narrow" if high < level else "too wide"
    return f"{told} ({low:.3f} to {high:.3f}): they are {judged}."


def number(value: float, metric: str) -> str:
    """A score with the digits of its metric."""
    return "undefined" if np.isnan(value) else f"{value:.{DIGITS.get(metric, 3)}f}"


def spread(one: Comparison) -> str:
    """A paired difference with its interval."""
    digits = DIGITS.get(one.metric, 3)
    if np.isnan(one.low):
        return f"{one.difference:+.{digits}f}"
    return f"{one.difference:+.{digits}f} ({one.low:+.{digits}f} to {one.high:+.{digits}f})"


def _mean(means: pd.DataFrame, stratum: str, method: str, metric: str) -> float:
    rows = means[(means["stratum"] == stratum) & (means["method"] == method) & (means["metric"] == metric)]
    return float(rows["mean"].iloc[0]) if len(rows) else float("nan")


def _and(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    # parts that hold commas or an "and" themselves are set apart by semicolons
    if any(", " in part or " and " in part for part in parts):
        return f"{'; '.join(parts[:-1])}; and {parts[-1]}"
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
