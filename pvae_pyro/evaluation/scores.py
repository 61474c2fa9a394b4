"""Scores of several methods on the same conditions: tidy rows, tables with intervals, paired differences."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.bootstrap import RESAMPLES, PairedDifference, interval, resample_ratios
from pvae_pyro.evaluation.distributions import (
    COVERAGES,
    joint_scores,
    log_density,
    log_scores,
    marginal_scores,
)
from pvae_pyro.evaluation.effects import mean_noise, stratum
from pvae_pyro.evaluation.legacy import LEGACY
from pvae_pyro.evaluation.metrics import (
    LEVELS,
    delta_pearson,
    half_replicate_floor,
    l2,
    mse_terms,
)
from pvae_pyro.evaluation.panel import LARGE_IS_GOOD, SKILL_TERMS, Panel
from pvae_pyro.evaluation.proper import variogram_genes

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]

METRICS = (
    "l2",
    "delta_pearson",
    "mse_ratio",
    "crps",
    "energy_score",
    "variogram_score",
    "log_score",
    "interval_score_90",
    *COVERAGES,
)
"""Headline metrics; `panel.FURTHER` stand beside them, `legacy.LEGACY` apart."""
SHOWN = ("l2", "delta_pearson", "mse_ratio", "crps", *COVERAGES)
"""The metrics that the table of a report has columns for."""
HIGHER_IS_BETTER = frozenset({"delta_pearson", "log_score"}) | LARGE_IS_GOOD
PERFECT = "floor: perfect prediction"
REPLICATE = "floor: measured replicate"
_NUMERATOR, _DENOMINATOR = "mse_ratio_numerator", "mse_ratio_denominator"
_UNDEFINED = "delta_pearson_undefined"
_RATIOS = {
    "mse_ratio": (_NUMERATOR, _DENOMINATOR),
    "skill_over_additive": SKILL_TERMS,
}  # ratios of sums over conditions
_AIMS = dict(zip(COVERAGES, LEVELS, strict=True)) | {"delta_slope": 1.0}
_TITLES = {"l2": "L2", "delta_pearson": "delta Pearson", "mse_ratio": "MSE ratio", "crps": "CRPS"}
_DIGITS = {"l2": 2, "crps": 4}  # methods differ by 0.1 in L2 and by 0.001 in CRPS


def parity(condition: str) -> Literal["even", "odd"]:
    """Whether a combination is for tuning ("even") or reporting ("odd"), by a hash of its canonical name."""
    canonical = "+".join(sorted(condition.split("+")))
    return "odd" if int(hashlib.sha256(canonical.encode()).hexdigest(), 16) % 2 else "even"


def evaluate(
    truth: ConditionSummary,
    predictions: Mapping[str, Prediction],
    control: tuple[ArrayLike, ArrayLike, int],
    seen_targets: Collection[str] | None = None,
    scale: ArrayLike | None = None,
    partial: Collection[str] = (),
    training: ConditionSummary | None = None,
) -> Scores:
    """Score predictions, whose rows are the conditions of ``truth``, against their measured means.

    control: mean (G,), within-condition variance (G,) and number of the *training* control cells, the
    reference of all shifts. seen_targets: targets trained as singles (default: all), which set the strata.
    scale (G,): the unit of each gene in the energy and variogram score, from training (default: sd of the control cells).
    training: the summary trained on, for the metrics that need it (see ``panel.Panel``).
    A control condition in truth is not scored. The CRPS of a point prediction is its mean absolute error;
    its coverage is left out. Coverage leaves out genes that are zero in the control and in every condition
    of truth: any method covers those. The energy score needs draws, the log score draws or an sd: its mean
    runs over the genes to which every method that has one gives a width in every condition, so it depends on
    the methods scored together. Methods named in partial, such as batches of another one's draws, take no
    gene from the others: what they give no width is left out of their own score alone. Two floors from split
    halves stand beside the methods (see ``metrics.Floor``). predictions are read once, in their order, and
    not kept. Raises InputError when nothing is left to score, ValueError when shapes disagree.
    """
    design = np.asarray(truth.design) != 0
    n_targets = design.sum(axis=1)
    known = np.array([seen_targets is None or target in seen_targets for target in truth.targets], dtype=bool)
    seen = (design & known).sum(axis=1)
    rows = np.flatnonzero(n_targets > 0)
    if not len(rows):
        raise InputError(
            "There is no perturbed condition to score: give a test set with held-out conditions."
        )
    mean0, variance0 = np.asarray(control[0], float), np.asarray(control[1], float)
    noise = mean_noise(truth)[rows].sum(axis=1)
    noise0 = float(variance0.sum() / control[2])
    measured = np.asarray(truth.mean, float)[rows]
    informative = (mean0 != 0) | (measured != 0).any(axis=0)
    unit = np.sqrt(variance0) if scale is None else np.asarray(scale, float)
    chosen = variogram_genes(mean0, unit)
    panel = Panel.of(truth, rows, control, training)

    columns: list[tuple[str, str, Array]] = []
    densities: dict[str, Array] = {}
    for method, prediction in predictions.items():
        if prediction.mean.shape != truth.mean.shape:
            raise ValueError(f"{method}: predicted {prediction.mean.shape}, measured {truth.mean.shape}")
        mean = np.asarray(prediction.mean, float)[rows]
        correlation, undefined = delta_pearson(mean, measured, mean0)
        excess, effect = mse_terms(mean, measured, mean0, noise, noise0)
        ratio = np.divide(excess, effect, out=np.full_like(excess, np.nan), where=effect > 0)
        columns += [
            (method, "l2", l2(mean, measured)),
            (method, "delta_pearson", correlation),
            (method, _UNDEFINED, undefined.astype(float)),
            (method, "mse_ratio", ratio),
            (method, _NUMERATOR, excess),
            (method, _DENOMINATOR, effect),
        ]
        further = (
            marginal_scores(prediction, rows, measured, informative),
            joint_scores(prediction, rows, measured, unit, chosen),
            panel.columns(mean),
        )
        columns += [(method, name, values) for one in further for name, values in one.items()]
        density = log_density(prediction, rows, measured)
        if density is not None:
            densities[method] = density
        del prediction  # the next one may be as large
    columns += [(method, "log_score", values) for method, values in log_scores(densities, partial).items()]
    floor = half_replicate_floor(truth, mean0)
    columns += [
        (PERFECT, "l2", floor.perfect_l2[rows]),
        (PERFECT, "delta_pearson", floor.perfect_delta_pearson[rows]),
        (REPLICATE, "l2", floor.replicate_l2[rows]),
        (REPLICATE, "delta_pearson", floor.replicate_delta_pearson[rows]),
    ]
    count = len(rows)
    place = np.tile(rows, len(columns))
    table = pd.DataFrame(
        {
            "condition": np.asarray(truth.conditions, dtype=object)[place],
            "method": np.repeat([method for method, _, _ in columns], count),
            "metric": np.repeat([metric for _, metric, _ in columns], count),
            "value": np.concatenate([values for _, _, values in columns]),
            "n_targets": n_targets[place],
            "seen": seen[place],
            "stratum": [stratum(int(n_targets[row]), int(seen[row])) for row in place],
        }
    )
    return Scores(table)


@dataclass(frozen=True, eq=False)
class Scores:
    """One row per condition, method and metric; all else is computed from these rows, which a CSV can hold.

    rows: columns condition, method, metric, value, n_targets, seen, stratum. ``mse_ratio`` of one condition
    is nan where its effect drowns in noise; tables use the ratio of sums.
    """

    rows: pd.DataFrame

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order in which they were given, floors last."""
        return tuple(dict.fromkeys(self.rows["method"]))

    @property
    def strata(self) -> tuple[str, ...]:
        """Strata that occur, in order of first appearance."""
        return tuple(dict.fromkeys(self.rows["stratum"]))

    @property
    def undefined(self) -> dict[str, int]:
        """Number of conditions per method whose delta Pearson is undefined and counts as 0."""
        rows = self.rows[self.rows["metric"] == _UNDEFINED]
        return {str(name): int(part["value"].sum()) for name, part in rows.groupby("method", sort=False)}

    def table(
        self,
        stratum: str | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
        metrics: Sequence[str] = METRICS,
    ) -> pd.DataFrame:
        """Mean over conditions with a 95 % bootstrap interval, per stratum, method and metric.

        Columns stratum, method, metric, mean, low, high, conditions. Strata stand apart and are never
        pooled; a name picks one. Conditions weigh equally; resamples are paired over methods. Raises
        InputError for an unknown stratum.
        """
        parts = []
        for name in self._chosen(stratum):
            wide = self._wide(name)
            keys, above, below = [], [], []
            for method in self.methods:
                for metric in metrics:
                    terms = metric_terms(wide, method, metric)
                    if terms is not None:
                        keys.append((name, method, metric))
                        above.append(terms[0])
                        below.append(terms[1])
            numerator, denominator = np.column_stack(above), np.column_stack(below)
            low, high = interval(resample_ratios(numerator, denominator, resamples, seed))
            total = denominator.sum(axis=0)
            mean = np.divide(numerator.sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
            part = pd.DataFrame(keys, columns=["stratum", "method", "metric"])
            parts.append(
                part.assign(mean=mean, low=low, high=high, conditions=(denominator != 0).sum(axis=0))
            )
        return pd.concat(parts, ignore_index=True)

    def paired(
        self,
        method: str,
        reference: str,
        metric: str,
        stratum: str | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> PairedDifference:
        """Difference method - reference on one metric, conditions resampled together.

        stratum may be left out when there is only one. Raises InputError for a method, metric or stratum
        without rows.
        """
        if metric in LEGACY:
            raise InputError(
                f"{metric} is a legacy score, shown and never compared; choose among {', '.join(METRICS)}."
            )
        names = self._chosen(stratum)
        if len(names) > 1:
            raise InputError(
                f"Scores cover the strata {', '.join(names)}, which are never pooled: name one of them."
            )
        wide = self._wide(names[0])
        found = [metric_terms(wide, name, metric) for name in (method, reference)]
        for name, terms in zip((method, reference), found, strict=True):
            if terms is None:
                raise InputError(
                    f"There is no {metric} of {name!r} in the stratum {names[0]!r}: choose among "
                    f"{', '.join(self.methods)} and {', '.join(METRICS)}."
                )
        (above, below), (other, under) = (terms for terms in found if terms is not None)
        both = (below != 0) & (under != 0)  # conditions that one side lacks have no pair
        numerator, denominator = np.column_stack([above, other])[both], np.column_stack([below, under])[both]
        if not both.any() or not (denominator.sum(axis=0) > 0).all():
            raise InputError(
                f"{metric} of {method!r} and {reference!r} has no conditions in common: compare others."
            )
        samples = resample_ratios(numerator, denominator, resamples, seed) @ np.array([[1.0], [-1.0]])
        low, high = interval(samples)
        ratio = numerator.sum(axis=0) / denominator.sum(axis=0)
        return PairedDifference(
            method=method,
            reference=reference,
            metric=metric,
            stratum=names[0],
            difference=float(ratio[0] - ratio[1]),
            low=float(low[0]),
            high=float(high[0]),
            standard_error=float(np.nanstd(samples, ddof=1)),
            better=_share_better(metric, numerator[:, 0], numerator[:, 1]),
            conditions=int(both.sum()),
        )

    def _chosen(self, stratum: str | None) -> tuple[str, ...]:
        if stratum is None:
            return self.strata
        if stratum not in self.strata:
            raise InputError(f"There is no stratum {stratum!r}: the scores have {', '.join(self.strata)}.")
        return (stratum,)

    def _wide(self, stratum: str) -> pd.DataFrame:
        """Conditions x (method, metric)."""
        rows = self.rows[self.rows["stratum"] == stratum]
        return rows.pivot(index="condition", columns=["method", "metric"], values="value")


def metric_terms(wide: pd.DataFrame, method: str, metric: str) -> tuple[Array, Array] | None:
    """Numerator and denominator (conditions,) whose ratio of sums is the metric; None without values."""
    if metric in _RATIOS:
        above, below = _RATIOS[metric]
        if (method, above) not in wide or not wide[method, above].notna().any():
            return None
        # a condition without the terms, such as a single among combinations, counts for neither
        return wide[method, above].fillna(0.0).to_numpy(float), wide[method, below].fillna(0.0).to_numpy(
            float
        )
    if (method, metric) not in wide:
        return None
    values = wide[method, metric].to_numpy(float)
    present = ~np.isnan(values)
    return (np.where(present, values, 0.0), present.astype(float)) if present.any() else None


def _share_better(metric: str, values: Array, reference: Array) -> float:
    """Share of conditions on which values are nearer to perfect than the reference; ties count half."""
    if metric in _RATIOS:
        # both share their denominators, so the numerators alone decide
        sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
        first, second = sign * values, sign * reference
    elif metric in HIGHER_IS_BETTER:
        first, second = -values, -reference
    elif metric in _AIMS:
        first, second = np.abs(values - _AIMS[metric]), np.abs(reference - _AIMS[metric])
    else:
        first, second = values, reference
    return float(((first < second) + 0.5 * (first == second)).mean())


def to_markdown(table: pd.DataFrame) -> str:
    """``Scores.table`` as Markdown, one block per stratum: "mean (low to high)" per method and metric SHOWN."""
    blocks = []
    for name, part in table.groupby("stratum", sort=False):
        metrics = [metric for metric in SHOWN if (part["metric"] == metric).any()]
        titles = [
            _TITLES.get(metric, f"{metric.removeprefix('coverage_')} % interval covers") for metric in metrics
        ]
        cells = {(row.method, row.metric): row for row in part.itertuples()}
        lines = [
            f"{name}: {part['conditions'].max()} conditions, mean (95 % bootstrap interval over conditions)",
            "",
            f"| method | {' | '.join(titles)} |",
            f"|---|{'---|' * len(titles)}",
        ]
        for method in dict.fromkeys(part["method"]):
            entries = [_cell(cells.get((method, metric)), _DIGITS.get(metric, 3)) for metric in metrics]
            lines.append(f"| {method} | {' | '.join(entries)} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _cell(row: object, digits: int) -> str:
    """One entry of the table, "-" where the method has no such score."""
    if row is None:
        return "-"
    mean, low, high = (float(getattr(row, name)) for name in ("mean", "low", "high"))
    if np.isnan(mean):
        return "undefined"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
