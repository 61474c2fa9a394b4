"""Every calibration table of a report, from its predictions and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.baselines import ADDITIVE, NOISE_ONLY, ORACLE
from pvae_pyro.evaluation.calibration import (
    Intervals,
    coverage_table,
    isotonic_reliability,
    pit,
    pit_difference,
    probability_above,
    quantile_groups,
    reliability,
    terciles,
)
from pvae_pyro.evaluation.conformal import left_out_factors, profile_scores
from pvae_pyro.evaluation.effects import request, single_effects
from pvae_pyro.evaluation.interactions import Measured, call_reliability, interaction_table
from pvae_pyro.evaluation.metrics import LEVELS
from pvae_pyro.evaluation.ranking import ORACLE as BY_ERROR
from pvae_pyro.evaluation.ranking import ranking_table, risk_coverage
from pvae_pyro.report.scoring import MODEL, Scored

Array = NDArray[np.float64]

CONFORMAL = "model, group conformal from the other conditions"
SIZE, CELLS, WIDTH, EXPRESSION, STRATUM = (
    "single effects, |d_A| + |d_B|",
    "measured cells",
    "predicted width",
    "control expression",
    "stratum",
)
SPREAD, FEW_CELLS, LARGE = "predicted sd", "few cells alone", "largest predicted shift"
PROFILE = 0.9
_COLUMNS = (
    "quantity",
    "stratum",
    "method",
    "group",
    "label",
    "x",
    "value",
    "low",
    "high",
    "width",
    "relative_width",
    "conditions",
    "cases",
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration of the model in the main stratum, beside the additive rule with widths of its own.

    coverage: rows of ``coverage_table`` with a column method; the group "stratum" holds the other strata. pit: method ->
    ``pit_difference``. signs, signs_curve: reliability of P(shift is up). ranking, risk: ``ranking_table`` and doubt -> risk
    (conditions,). interactions, calls: tables, None where no interaction could be predicted. profile: share of conditions
    with 90 % of their genes inside 90 % intervals, per method. reference: the method that widths are relative to.
    """

    stratum: str
    conditions: int
    coverage: pd.DataFrame
    pit: Mapping[str, pd.DataFrame]
    signs: pd.DataFrame
    signs_curve: pd.DataFrame
    ranking: pd.DataFrame
    risk: Mapping[str, Array]
    profile: Mapping[str, float]
    reference: str | None
    interactions: pd.DataFrame | None
    calls: pd.DataFrame | None

    def rows(self) -> pd.DataFrame:
        """Everything as one tidy table, as calibration.csv holds it: ``x`` is the level, probability or share it stands at."""
        main = self.stratum
        of_stratum = self.coverage["group"] == STRATUM
        parts = [
            self.coverage.assign(
                quantity="coverage",
                stratum=np.where(of_stratum, self.coverage["label"], main),
                x=self.coverage["level"],
                value=self.coverage["coverage"],
            )
        ]
        parts += [
            one.assign(quantity="pit", stratum=main, method=name, x=one["u"], value=one["difference"])
            for name, one in self.pit.items()
        ]
        for name, one, value in (
            ("sign", self.signs, "observed"),
            ("sign_curve", self.signs_curve, "fitted"),
        ):
            parts.append(
                one.assign(quantity=name, stratum=main, method=MODEL, x=one["predicted"], value=one[value])
            )
        one = self.ranking.assign(stratum=main, method=MODEL, label=self.ranking["doubt"])
        parts.append(one.assign(quantity="aurc", value=one["aurc"]))
        for column in ("lost", "spearman", "partial_spearman"):
            quantity = "aurc_lost" if column == "lost" else column
            parts.append(one.drop(columns=["low", "high"]).assign(quantity=quantity, value=one[column]))
        for name, risk in self.risk.items():
            kept = pd.DataFrame({"x": np.arange(1, len(risk) + 1) / len(risk), "value": risk})
            parts.append(kept.assign(quantity="risk", stratum=main, method=MODEL, label=name))
        shares = pd.DataFrame({"method": list(self.profile), "value": list(self.profile.values())})
        parts.append(
            shares.assign(quantity="profile_coverage", stratum=main, x=PROFILE, conditions=self.conditions)
        )
        if self.interactions is not None and self.calls is not None:
            one = self.interactions
            parts.append(
                one.assign(
                    quantity="interaction",
                    stratum=main,
                    method=MODEL,
                    group=one["stratum"],
                    label=one["metric"],
                    conditions=one["combinations"],
                )
            )
            one = self.calls
            parts.append(
                one.assign(
                    quantity="interaction_call",
                    stratum=main,
                    method=MODEL,
                    group=one["call"],
                    label=one["size"].map("{:g}".format),
                    x=one["predicted"],
                    value=one["observed"],
                )
            )
        return pd.concat([part.reindex(columns=list(_COLUMNS)) for part in parts], ignore_index=True)


def calibrate(scored: Scored, seed: int = 0) -> Calibration:
    """All of it, for the model of a report; nothing here looks at the outcome to make a group."""
    main = scored.strata[0]
    names = scored.members(main)
    rows = np.array([scored.truth.index(name) for name in names])
    measured, control = np.asarray(scored.truth.mean, float), scored.control
    counted = (control != 0) | (measured != 0).any(axis=0)
    y = measured[rows]
    model = _taken(scored.predictions[MODEL], rows)
    mean, spread = np.asarray(model.mean, float), _sd(model)
    raw = Intervals.of(model, y, counted)
    methods = {MODEL: raw}
    conformal = _conformal(mean, spread, y, counted)
    if conformal is not None:
        methods[CONFORMAL] = conformal
    for end in (ORACLE, NOISE_ONLY, ""):
        name = f"probabilistic {ADDITIVE}{end}"
        if name in scored.predictions:
            methods[name] = Intervals.of(_taken(scored.predictions[name], rows), y, counted)
    reference = next((name for name in methods if name not in (MODEL, CONFORMAL)), None)
    groups = _groups(scored, rows, control, counted, raw)
    tables = []
    for name, one in methods.items():
        # a conformal row has the levels that so few conditions allow
        known = [LEVELS.index(level) for level in one.levels]
        other = None if reference is None else methods[reference].width[known]
        tables.append(coverage_table(one, groups, other, seed=seed).assign(method=name))
    for name in scored.strata[1:]:
        apart = np.array([scored.truth.index(one) for one in scored.members(name)])
        one = Intervals.of(_taken(scored.predictions[MODEL], apart), measured[apart], counted)
        tables.append(coverage_table(one, {}, seed=seed).assign(method=MODEL, group=STRATUM, label=name))
    pits = {name: _taken(scored.predictions[name], rows) for name in methods if name in scored.predictions}
    moved = counted & (y != control)
    up = probability_above(model, control), y > control
    error = np.sqrt(((mean - y) ** 2).sum(axis=1))
    shift = mean - control
    doubts = {
        SPREAD: np.sqrt((spread**2).sum(axis=1)),
        FEW_CELLS: 1 / np.sqrt(np.asarray(scored.truth.n_cells, float)[rows]),
        LARGE: np.abs(shift).max(axis=1),
    }
    interactions, calls = _interactions(scored, counted, seed)
    at = LEVELS.index(PROFILE)
    return Calibration(
        stratum=main,
        conditions=len(names),
        coverage=pd.concat(tables, ignore_index=True),
        pit={name: pit_difference(pit(one, y, seed)[:, counted], seed=seed) for name, one in pits.items()},
        signs=reliability(*up, moved, seed=seed),
        signs_curve=isotonic_reliability(*up, moved, seed=seed),
        ranking=ranking_table(error, doubts, np.linalg.norm(shift, axis=1), seed=seed),
        risk={name: risk_coverage(error, doubt) for name, doubt in (doubts | {BY_ERROR: error}).items()},
        profile=_profile(mean, spread, y, counted, raw.inside[at]),
        reference=reference,
        interactions=interactions,
        calls=calls,
    )


def _groups(
    scored: Scored, rows: NDArray[np.int64], control: Array, counted: NDArray[np.bool_], raw: Intervals
) -> dict[str, NDArray[np.str_]]:
    """Groups that know training and prediction alone."""
    effects = single_effects(scored.training)
    asked = request(effects, scored.truth.design[rows], 1, scored.truth.targets)
    sizes = np.abs(asked.design) @ np.linalg.norm(effects.shift, axis=1)
    width = np.where(counted, raw.width[LEVELS.index(0.90)], np.nan)
    return {
        SIZE: terciles(sizes)[:, None],
        CELLS: terciles(np.asarray(scored.truth.n_cells, float)[rows])[:, None],
        WIDTH: quantile_groups(width, 10),
        EXPRESSION: quantile_groups(np.where(counted, control, np.nan), 10),
    }


def _conformal(mean: Array, sd: Array, y: Array, counted: NDArray[np.bool_]) -> Intervals | None:
    """Every condition widened by the factor that the others ask for, at the levels that their number allows."""
    found = []
    for level in LEVELS:
        factor = (
            left_out_factors(mean[:, counted], sd[:, counted], y[:, counted], level)
            if len(y) > 1
            else np.array([np.inf])
        )
        if np.isfinite(factor).all():
            reach = factor[:, None] * sd
            found.append((level, np.abs(y - mean) <= reach, 2 * reach))
    if not found:
        return None
    levels, inside, width = zip(*found, strict=True)
    return Intervals(tuple(levels), np.stack(inside), np.stack(width), counted)


def _profile(
    mean: Array, sd: Array, y: Array, counted: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> dict[str, float]:
    """Share of conditions with 90 % of their genes inside 90 % intervals: raw, and with the conformal profile factor."""
    found = {MODEL: float((inside[:, counted].mean(axis=1) >= PROFILE).mean())}
    kept = mean[:, counted], sd[:, counted], y[:, counted]
    factors = left_out_factors(*kept, PROFILE, profile=True)
    if np.isfinite(factors).all():
        found[CONFORMAL] = float((profile_scores(*kept, PROFILE) <= factors).mean())
    return found


def _interactions(
    scored: Scored, counted: NDArray[np.bool_], seed: int
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    if scored.interactions is None:
        return None, None
    measured, calls = scored.interactions
    kept = Measured(measured.conditions, measured.e[:, counted], measured.se[:, counted])
    table = interaction_table(kept, calls.mean[:, counted], seed=seed)
    return table, call_reliability(calls, measured.e, counted, seed=seed)


def _taken(prediction: Prediction, rows: NDArray[np.int64]) -> Prediction:
    sd, draws = prediction.sd, prediction.draws
    return Prediction(
        prediction.mean[rows], None if sd is None else sd[rows], None if draws is None else draws[:, rows]
    )


def _sd(prediction: Prediction) -> Array:
    assert prediction.draws is not None
    return np.stack(
        [
            prediction.draws[:, row].std(axis=0, ddof=1, dtype=np.float64)
            for row in range(len(prediction.mean))
        ]
    )
