"""What the folds of a cross-validation say of widths: coverage of what they held out, and intervals of pairs that none had.

Conformal rows are post hoc, stand under labels of their own and never replace the raw ones. Pairs are the exchangeable
unit, all genes of a pair together. Source: evaluation.md 4.3 and 4.4; Barber, Candes, Ramdas & Tibshirani 2021 (CV+); Lee,
Barber & Willett 2023 (arXiv 2306.06342: its form for groups).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.bootstrap import interval, resample_ratios
from pvae_pyro.evaluation.compare import MINIMUM_DRAWS, prediction, singles
from pvae_pyro.evaluation.conformal import cv_plus, gene_scores, left_out_factors, relative_error
from pvae_pyro.evaluation.distributions import COVERAGES
from pvae_pyro.evaluation.effects import stratum
from pvae_pyro.evaluation.metrics import LEVELS, ends_draws
from pvae_pyro.labels import parse_condition, parse_request

if TYPE_CHECKING:
    from pvae_pyro.evaluation.cross_validation import CrossValidation

Array = NDArray[np.float64]

RAW, CV_PLUS, CONFORMAL = "raw", "CV+ over pairs", "group conformal over pairs"
_TOGETHER = 16  # conditions whose draws are held at a time
_log = logging.getLogger("pvae_pyro")


@dataclass(frozen=True, eq=False)
class PairIntervals:
    """Intervals of the measured pseudobulks of C combinations over G genes, from K fits of which none saw them.

    raw (2, C, G), low and high: central intervals of the draws of all K fits together. cv_plus (2, C, G): ends that widen, or
    narrow, what each fit says by the errors of the fits on pairs that they had left out; they hold a random gene of a new
    pair with probability of at least ``2 level - 1`` and usually ``level``. pairs (C,): how many pairs were left out, of the same
    stratum; below ``level / (1 - level)`` of them CV+ ends are infinite. n_cells (C,): cells of the pseudobulks.
    """

    level: float
    conditions: tuple[str, ...]
    genes: NDArray[np.str_]
    n_cells: NDArray[np.int64]
    raw: Array
    cv_plus: Array
    pairs: NDArray[np.int64]

    def table(self) -> pd.DataFrame:
        """One row per method ("raw", "CV+ over pairs"), condition and gene: method, condition, gene, low, high."""
        index = pd.MultiIndex.from_product([self.conditions, self.genes], names=["condition", "gene"])
        parts = [
            pd.DataFrame({"low": ends[0].ravel(), "high": ends[1].ravel()}, index=index).reset_index().assign(method=name)
            for name, ends in ((RAW, self.raw), (CV_PLUS, self.cv_plus))
        ]
        return pd.concat(parts, ignore_index=True)[["method", "condition", "gene", "low", "high"]]


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """Held-out combinations (P,), each from the first fold that left it out: fold, mean, sd and measured (P, G)."""

    names: tuple[str, ...]
    stratum: NDArray[np.str_]
    fold: NDArray[np.int64]
    mean: Array
    sd: Array
    measured: Array

    @classmethod
    def of(cls, result: CrossValidation, genes: NDArray[np.str_]) -> _HeldOut:
        known = result.rows.drop_duplicates("condition")
        combined = known[known["n_targets"] > 1].set_index("condition")["stratum"]
        rows: dict[str, tuple[int, int]] = {}
        for number, one in enumerate(result.folds):
            for row, name in enumerate(one.held_out):
                if name in combined.index:
                    rows.setdefault(name, (number, row))
        if any(fold.measured is None for fold in result.folds):
            raise InputError("These folds hold no measured values; run cross_validate again with this version.")
        columns = [_columns(fold.genes, genes) for fold in result.folds]
        mean, sd, measured = (
            np.array([getattr(result.folds[k], what)[row][columns[k]] for k, row in rows.values()], float)
            for what in ("mean", "sd", "measured")
        )
        names, fold = tuple(rows), np.array([k for k, _ in rows.values()], np.int64)
        return cls(names, combined.reindex(names).to_numpy(str), fold, mean, sd, measured)


def coverage(result: CrossValidation, resamples: int, seed: int) -> pd.DataFrame:
    """See `CrossValidation.coverage`."""
    rows = _raw_rows(result, resamples, seed)
    held = _HeldOut.of(result, _common(result))
    for name in dict.fromkeys(held.stratum.tolist()):
        own = held.stratum == name
        counted = (held.measured[own] != 0).any(axis=0)
        mean, sd, y = (one[own][:, counted] for one in (held.mean, held.sd, held.measured))
        for level in LEVELS:
            factor = left_out_factors(mean, sd, y, level) if len(y) > 1 else np.array([np.inf])
            if np.isfinite(factor).all():  # else too few pairs for this level
                inside = (relative_error(mean, sd, y) <= factor[:, None]).mean(axis=1)
                rows.append(_row(name, CONFORMAL, level, inside, float(factor.mean()), resamples, seed))
    return pd.DataFrame(rows)


def _raw_rows(result: CrossValidation, resamples: int, seed: int) -> list[dict[str, Any]]:
    values = result.rows[result.rows["metric"].isin(COVERAGES)]
    wide = values.pivot_table(index=["stratum", "condition"], columns="metric", values="value", sort=False)
    return [
        _row(str(name), RAW, level, own[metric].to_numpy(float), float("nan"), resamples, seed)
        for name, own in wide.groupby(level="stratum", sort=False)
        for level, metric in zip(LEVELS, COVERAGES, strict=True)
    ]


def _row(
    name: str, method: str, level: float, values: Array, factor: float, resamples: int, seed: int
) -> dict[str, Any]:
    low, high = interval(resample_ratios(values[:, None], np.ones((len(values), 1)), resamples, seed))
    return {
        "stratum": name, "method": method, "level": level, "coverage": float(values.mean()),
        "low": float(low[0]), "high": float(high[0]), "conditions": len(values), "factor": factor,
    }  # fmt: skip


def intervals(
    result: CrossValidation,
    conditions: Sequence[str],
    level: float,
    n_cells: int | Mapping[str, int] | None,
    draws: int,
    seed: int,
) -> PairIntervals:
    """See `CrossValidation.intervals`."""
    fits = [fold.fit for fold in result.folds]
    if any(one is None for one in fits):
        raise InputError("The fits of the folds were not kept; run cross_validate(..., keep_fits=True) to ask for intervals.")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, but {level} was given.")
    if draws < MINIMUM_DRAWS:
        raise InputError(f"{draws} draws are too few for intervals; ask for {MINIMUM_DRAWS} or more.")
    names, strata = _asked(result, [conditions] if isinstance(conditions, str) else conditions)
    genes = _common(result)
    held = _HeldOut.of(result, genes)
    pairs = np.array([(held.stratum == one).sum() for one in strata])
    if not pairs.all():
        row = int(np.flatnonzero(pairs == 0)[0])
        raise InputError(
            f"'{names[row]}' is of the stratum '{strata[row]}', of which the folds held out no combination to learn a width "
            "from; hold out some, or ask for others."
        )
    if (pairs < level / (1 - level) - 1e-9).any():
        _log.warning("%d held-out pairs are too few for CV+ at %g: its ends are infinite.", pairs.min(), level)
    raw, conformal = (np.empty((2, len(names), len(genes))) for _ in range(2))
    counts = np.zeros(len(names), np.int64)
    counted = (held.measured != 0).any(axis=0)
    for start in range(0, len(names), _TOGETHER):
        chosen = names[start : start + _TOGETHER]
        drawn, cells = _draws(fits, chosen, n_cells, genes, draws, seed)
        mean, sd = drawn.mean(axis=1, dtype=np.float64), drawn.std(axis=1, ddof=1, dtype=np.float64)
        counts[start : start + len(chosen)] = cells
        for place, row in enumerate(range(start, start + len(chosen))):
            ends = ends_draws(drawn[:, :, place].reshape(-1, len(genes)), (level,))
            raw[:, row] = [one[0] for one in ends]
            own = held.stratum == strata[row]
            scores = gene_scores(*(one[own][:, counted] for one in (held.mean, held.sd, held.measured)))
            ends = cv_plus(scores, held.fold[own], mean[:, [place]], sd[:, [place]], level)
            conformal[:, row] = [one[0] for one in ends]
    return PairIntervals(level, tuple(names), genes, counts, raw, conformal, pairs)


def _draws(
    fits: Sequence[Any],
    names: list[str],
    n_cells: int | Mapping[str, int] | None,
    genes: NDArray[np.str_],
    draws: int,
    seed: int,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Draws (K, S, C, G), independent between fits, and numbers of cells (C,): where none are given those of the first fit."""
    first = fits[0].predict(names, draws=draws, n_cells=n_cells, seed=seed)
    cells = np.asarray(first.n_cells, np.int64)
    same = dict(zip(names, cells.tolist(), strict=True))
    others = (fit.predict(names, draws=draws, n_cells=same, seed=seed + k) for k, fit in enumerate(fits[1:], 1))
    found = [prediction(one, genes, "The prediction").draws for one in (first, *others)]
    return np.stack([one for one in found if one is not None]), cells


def _asked(result: CrossValidation, conditions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Canonical names and strata of combinations that no fold knows; a target is seen where every fold trained on it alone."""
    fits: list[Any] = [fold.fit for fold in result.folds]
    known = set.intersection(*({*getattr(fit, "known_targets", fit.training.targets)} for fit in fits))
    names = parse_request(conditions, known)
    had = {name for fit in fits for name in fit.training.conditions} | {n for fold in result.folds for n in fold.held_out}
    alone = set.intersection(*(singles(fit.training) for fit in fits))
    strata = []
    for name in names:
        targets = list(parse_condition(name))
        if len(targets) < 2:
            raise InputError(f"'{name}' is no combination; intervals of cross-validated fits are for combinations.")
        if name in had:
            raise InputError(
                f"'{name}' was measured and took part in the cross-validation; ask for combinations that no fold had."
            )
        strata.append(stratum(len(targets), sum(one in alone for one in targets)))
    if not names:
        raise InputError("no combination was asked for; name at least one, for example 'A+B'.")
    return names, strata


def _common(result: CrossValidation) -> NDArray[np.str_]:
    """Genes that all folds chose, in the order of the first."""
    shared = set.intersection(*({str(gene) for gene in fold.genes} for fold in result.folds))
    return np.array([gene for gene in result.folds[0].genes if str(gene) in shared])


def _columns(genes: NDArray[np.str_], wanted: NDArray[np.str_]) -> NDArray[np.int64]:
    place = {str(gene): column for column, gene in enumerate(genes)}
    return np.array([place[str(gene)] for gene in wanted], np.int64)
