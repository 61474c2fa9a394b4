"""What a report is about: a fit's predictions, every baseline, and the scores of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.baselines import (
    ADDITIVE,
    KERNEL_RIDGE,
    SHRUNK_PRIOR,
    baselines,
    oracle_baselines,
)
from pvae_pyro.evaluation.effects import control_row, single_effects
from pvae_pyro.evaluation.interactions import Calls, Measured, measured_interactions
from pvae_pyro.evaluation.metrics import covered_draws, covered_normal
from pvae_pyro.evaluation.scores import METRICS, Scores, evaluate
from pvae_pyro.labels import CONTROL
from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]

MODEL = "model"
WARM_START = "warm start, 0 epochs"
MINIMUM_DRAWS = 20
MOST_INTERACTIONS = (
    100  # combinations whose interaction is predicted, and draws of it: their latent means are held at once
)
INTERACTION_DRAWS = 200
_ITSELF = ", itself trained"


class PosteriorLike(Protocol):
    """The part of a Posterior that a report reads."""

    @property
    def conditions(self) -> Sequence[str]:
        """Canonical names, in the order asked."""

    @property
    def genes(self) -> NDArray[np.str_]:
        """Gene names (G,)."""

    def draws(self, kind: Literal["measured_pseudobulk", "latent_mean"]) -> NDArray[np.floating[Any]]:
        """Joint draws (S, C, G)."""


class FindingLike(Protocol):
    """One finding of a fit's diagnosis; level is "fine", "look" or "do not trust"."""

    @property
    def topic(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def advice(self) -> str: ...


class FitLike(Protocol):
    """The part of a Fit that a report reads; an ``at_start()`` returning a Fit or None may be there, too."""

    @property
    def history(self) -> Mapping[str, Sequence[float]]: ...
    @property
    def training(self) -> ConditionSummary: ...
    @property
    def scale(self) -> str: ...
    def predict(
        self, conditions: list[str], *, draws: int, n_cells: dict[str, int], seed: int
    ) -> PosteriorLike:
        """Joint posterior of the conditions, for pseudobulks of so many cells."""

    def diagnose(self) -> Sequence[FindingLike]:
        """Findings about the fit, in words."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Predictions of the conditions of ``truth``, row by row, and their scores.

    closed_forms are the honest baselines, flattered those that looked at the answer; trained (C,) says of
    each condition whether it was itself trained, same_cells which of them on these very cells. interactions: those
    measured on combinations that were not trained, and the model's calls of them; None where either is
    missing.
    """

    truth: ConditionSummary
    training: ConditionSummary
    predictions: dict[str, Prediction]
    closed_forms: tuple[str, ...]
    flattered: tuple[str, ...]
    scores: Scores
    trained: NDArray[np.bool_]
    same_cells: tuple[str, ...]
    interactions: tuple[Measured, Calls] | None = None

    @property
    def control(self) -> Array:
        """Mean of the training control, the reference of all shifts, (G,)."""
        return np.asarray(self.training.mean[control_row(self.training)], float)

    @property
    def strata(self) -> tuple[str, ...]:
        """Strata, the main one first: untrained combinations of which most targets were seen."""
        keys = {}
        for name, rows in self.scores.rows.groupby("stratum", sort=False):
            targets, seen = int(rows["n_targets"].max()), int(rows["seen"].max())
            keys[str(name)] = (str(name).endswith(_ITSELF), targets < 2, targets - seen, targets)
        return tuple(sorted(keys, key=lambda name: (*keys[name], name)))

    def values(self, method: str, metric: str) -> pd.Series[float]:
        """One score per condition, indexed by condition; empty where the method has no such score."""
        rows = self.scores.rows
        rows = rows[(rows["method"] == method) & (rows["metric"] == metric)]
        return pd.Series(rows["value"].to_numpy(float), index=list(rows["condition"]))

    def members(self, stratum: str) -> list[str]:
        """Conditions of a stratum, in the order of ``truth``."""
        rows = self.scores.rows
        inside = set(rows.loc[rows["stratum"] == stratum, "condition"])
        return [name for name in self.truth.conditions if name in inside]

    def twins(self, stratum: str) -> dict[str, str]:
        """Closed forms with the same scores as an earlier one on all of a stratum: name -> earlier."""
        rows = self.scores.rows
        rows = rows[(rows["stratum"] == stratum) & rows["metric"].isin(METRICS)]
        found: dict[str, str] = {}
        kept: dict[str, pd.Series[float]] = {}
        for name in self.closed_forms:
            own = rows[rows["method"] == name].set_index(["condition", "metric"])["value"]
            for earlier, other in kept.items():
                if own.index.equals(other.index) and np.allclose(own, other, 1e-9, 1e-12, equal_nan=True):
                    found[name] = earlier
                    break
            else:
                kept[name] = own
        return found

    def relative_error(self) -> pd.Series[float]:
        """L2 of the model over the length of the measured shift, per condition; infinite without a shift."""
        errors = self.values(MODEL, "l2")
        rows = [self.truth.index(str(name)) for name in errors.index]
        length = np.linalg.norm(self.truth.mean[rows] - self.control, axis=1)
        ratio = np.divide(errors.to_numpy(), length, out=np.full(len(errors), np.inf), where=length > 0)
        return pd.Series(ratio, index=errors.index)

    def coverage(self, method: str, conditions: Sequence[str], levels: Sequence[float]) -> Array:
        """Share of genes inside central intervals, (conditions, levels), over the genes that scores count."""
        prediction, control = self.predictions[method], self.control
        genes = (control != 0) | (self.truth.mean != 0).any(axis=0)
        shares = np.full((len(conditions), len(levels)), np.nan)
        for i, name in enumerate(conditions):
            row = self.truth.index(name)
            measured = self.truth.mean[row]
            if prediction.draws is not None:
                inside = covered_draws(prediction.draws[:, row], measured, levels)
            elif prediction.sd is not None:
                inside = covered_normal(prediction.mean[row], prediction.sd[row], measured, levels)
            else:
                raise ValueError(f"{method} is a point prediction and has no intervals")
            if genes.any():
                shares[i] = inside[:, genes].mean(axis=1)
        return shares


def score(
    fit: FitLike,
    truth: ConditionSummary,
    draws: int,
    seed: int,
    extra: Mapping[str, Prediction] | None = None,
) -> Scored:
    """Predict every perturbed condition of truth and score the fit beside the baselines.

    Pseudobulks have the truth's own cell counts. Conditions are put into canonical order first, so the order
    of truth does not matter; genes are those of the prediction. The rows of ``extra`` are those of truth as
    given. Raises InputError when there is nothing to score, too few draws, a gene is missing or an extra name
    is taken.
    """
    if draws < MINIMUM_DRAWS:
        raise InputError(
            f"{draws} draws are too few to score intervals; ask for {MINIMUM_DRAWS} or more (400 by default)."
        )
    n_targets = (np.asarray(truth.design) != 0).sum(axis=1)
    order: list[int] = sorted(
        np.flatnonzero(n_targets).tolist(), key=lambda row: (n_targets[row], truth.conditions[row])
    )
    if not order:
        raise InputError(
            "There is no perturbed condition to score: hold conditions out of training or give a test file."
        )
    names = [truth.conditions[row] for row in order]
    n_cells = {name: int(truth.n_cells[row]) for name, row in zip(names, order, strict=True)}
    posterior = fit.predict(names, draws=draws, n_cells=n_cells, seed=seed)
    genes = np.asarray(posterior.genes)
    columns = _columns(truth.genes, genes, "test data")
    predictions = {MODEL: _prediction(posterior, names, genes)}
    before = _at_start(fit)
    if before is not None:
        started = before.predict(names, draws=draws, n_cells=n_cells, seed=seed)
        predictions[WARM_START] = _prediction(started, names, genes)

    measured = _take(truth.restrict(names), genes, columns)
    training = _take(fit.training, genes, _columns(fit.training.genes, genes, "training summary"))
    closed = baselines(training, measured.design, measured.n_cells, measured.targets)
    several = bool((n_targets >= 2).any())
    oracle = oracle_baselines(training, measured) if several else {}
    for name, prediction in (extra or {}).items():
        if name in predictions or name in closed or name in oracle:
            raise InputError(f"The method name {name!r} is taken by the report itself; choose another.")
        predictions[name] = _reorder(name, prediction, truth, order, columns)
    predictions |= closed | oracle

    row = control_row(training)
    effects = single_effects(training)
    seen = {name for name, known in zip(effects.targets, effects.seen, strict=True) if known}
    control = training.mean[row], training.variance[row], int(training.n_cells[row])
    scores = evaluate(measured, predictions, control, seen, training=training)
    own = set(training.conditions)
    return Scored(
        truth=measured,
        training=training,
        predictions=predictions,
        closed_forms=tuple(closed),
        flattered=tuple(oracle),
        scores=_apart(scores, n_cells, own),
        trained=np.array([name in own for name in names]),
        same_cells=tuple(name for name in names if name in own and _same(measured, training, name)),
        interactions=(
            _interactions(fit, measured, training, draws, seed) if hasattr(posterior, "interaction") else None
        ),
    )


def unit(fit: FitLike) -> str:
    """Scale of means and shifts, in words."""
    return "mean log1p(counts per 10,000)" if fit.scale == "counts" else "mean of the input's own scale"


def shown_closed_forms(scored: Scored) -> list[str]:
    """The closed forms that a figure has room for: additive, and the best there is with and without pairs."""
    return [name for name in (ADDITIVE, SHRUNK_PRIOR, KERNEL_RIDGE) if name in scored.closed_forms]


def _interactions(
    fit: FitLike, truth: ConditionSummary, training: ConditionSummary, draws: int, seed: int
) -> tuple[Measured, Calls] | None:
    """Untrained combinations of seen singles at dose 1, evenly taken where there are many.

    ``Posterior.interaction`` one by one would push the draws anew each time; here combinations, singles and control come
    from one prediction of latent means, whose draws are joint.
    """
    design = np.asarray(truth.design)
    fresh = [
        name
        for name, doses in zip(truth.conditions, design, strict=True)
        if name not in training.conditions and (doses != 0).sum() >= 2 and set(doses) <= {0.0, 1.0}
    ]
    try:
        found = measured_interactions(truth.restrict(fresh), training) if fresh else None
    except InputError:
        found = None
    if found is None:
        return None
    step = -(-len(found.conditions) // MOST_INTERACTIONS)
    measured = Measured(found.conditions[::step], found.e[::step], found.se[::step])
    parts = [name.split("+") for name in measured.conditions]
    alone = sorted({target for targets in parts for target in targets})
    names = [CONTROL, *alone, *measured.conditions]
    counted = min(draws, INTERACTION_DRAWS)
    posterior = fit.predict(names, draws=counted, n_cells=dict.fromkeys(names, 1000), seed=seed)
    genes = list(posterior.genes)
    if genes != list(truth.genes):
        return None
    latent = posterior.draws("latent_mean")
    place = {name: row for row, name in enumerate(posterior.conditions)}
    own = (
        latent[:, place[name]].astype(float)
        - sum(latent[:, place[target]].astype(float) for target in targets)
        + (len(targets) - 1) * latent[:, place[CONTROL]].astype(float)
        for name, targets in zip(measured.conditions, parts, strict=True)
    )
    return measured, Calls.of(own, measured.se)


def _at_start(fit: FitLike) -> FitLike | None:
    """The fit before its first epoch, where fits keep it."""
    recall = getattr(fit, "at_start", None)
    before: FitLike | None = recall() if callable(recall) else None
    return before


def _apart(scores: Scores, n_cells: Mapping[str, int], trained: set[str]) -> Scores:
    """Conditions that were trained on other cells of their own are a task apart, so a stratum apart."""
    rows = scores.rows
    itself = rows["condition"].isin(trained)
    stratum = rows["stratum"].where(~itself, rows["stratum"] + _ITSELF)
    return Scores(rows.assign(stratum=stratum, n_cells=rows["condition"].map(n_cells)))


def _same(truth: ConditionSummary, training: ConditionSummary, name: str) -> bool:
    one, other = truth.index(name), training.index(name)
    return bool(
        truth.n_cells[one] == training.n_cells[other]
        and np.array_equal(truth.mean[one], training.mean[other])
    )


def _prediction(posterior: PosteriorLike, names: Sequence[str], genes: NDArray[np.str_]) -> Prediction:
    """Draws of the measured pseudobulks and their mean, rows and columns in this order."""
    draws = posterior.draws("measured_pseudobulk")
    rows = [list(posterior.conditions).index(name) for name in names]
    if rows != list(range(draws.shape[1])):
        draws = draws[:, rows]
    columns = _columns(np.asarray(posterior.genes), genes, "prediction")
    if columns is not None:
        draws = draws[:, :, columns]
    return Prediction(draws.mean(axis=0, dtype=np.float64), draws=draws)


def _columns(have: NDArray[np.str_], want: NDArray[np.str_], what: str) -> NDArray[np.int64] | None:
    """Places of the wanted genes, None where they are all there is, in that order."""
    if np.array_equal(have, want):
        return None
    place = {str(name): column for column, name in enumerate(have)}
    absent = [str(name) for name in want if str(name) not in place]
    if absent:
        raise InputError(
            f"The {what} lack {len(absent)} of the {len(want)} genes that the fit predicts, such as "
            f"{absent[0]!r}; give data with all of them."
        )
    return np.array([place[str(name)] for name in want])


def _take(
    summary: ConditionSummary, genes: NDArray[np.str_], columns: NDArray[np.int64] | None
) -> ConditionSummary:
    if columns is None:
        return summary
    # picked columns come in another memory order, in which sums round otherwise
    return dataclasses.replace(
        summary,
        mean=np.ascontiguousarray(summary.mean[:, columns]),
        variance=np.ascontiguousarray(summary.variance[:, columns]),
        halves=np.ascontiguousarray(summary.halves[:, :, columns]),
        genes=genes,
    )


def _reorder(
    name: str,
    prediction: Prediction,
    truth: ConditionSummary,
    order: Sequence[int],
    columns: NDArray[np.int64] | None,
) -> Prediction:
    """A prediction whose rows and columns are those of truth, in the order of the report."""
    if prediction.mean.shape != truth.mean.shape:
        raise InputError(
            f"The prediction {name!r} has the shape {prediction.mean.shape}, the measured conditions and "
            f"genes {truth.mean.shape}; give one row per condition, in their order."
        )
    taken = slice(None) if columns is None else columns
    sd, draws = prediction.sd, prediction.draws
    return Prediction(
        np.ascontiguousarray(prediction.mean[order][:, taken]),
        None if sd is None else np.ascontiguousarray(sd[order][:, taken]),
        None if draws is None else np.ascontiguousarray(draws[:, order][:, :, taken]),
    )
