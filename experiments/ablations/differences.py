"""Arms against a reference, pair by pair: what results.csv supports."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t as student

from pvae_pyro.evaluation.differences import BATCHES, difference_table
from pvae_pyro.evaluation.scores import Scores

from .arms import DEFAULT, METRICS

STRATUM = "odd pairs"


def differences(results: pd.DataFrame, reference: str = DEFAULT, arms: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Every arm (or `arms`) minus `reference`: the rows of `difference_table`, and `seeds` that both were run with.

    A pair's score is its mean over seeds. The 95 % intervals hold two independent errors: pairs are resampled, and seeds differ.
    Where an arm has a single seed, its seeds are taken to differ as those of the default do.
    """
    pairs = results[results["what"].str.contains("+", regex=False) & results["metric"].isin(METRICS)]
    names = [arm for arm in dict.fromkeys(pairs["arm"]) if arm != reference and (arms is None or arm in arms)]
    parts = [_one(pairs, arm, reference) for arm in names]
    return pd.concat([part for part in parts if len(part)], ignore_index=True) if parts else pd.DataFrame()


def _one(pairs: pd.DataFrame, arm: str, reference: str) -> pd.DataFrame:
    mine = pairs[pairs["arm"].isin([arm, reference])]
    seeds = sorted(set(mine[mine["arm"] == arm]["seed"]) & set(mine[mine["arm"] == reference]["seed"]))
    mine = mine[mine["seed"].isin(seeds)].rename(columns={"arm": "method", "what": "condition"})
    rows = mine.groupby(["condition", "method", "metric"], as_index=False)["value"].mean()
    scores = Scores(rows.assign(n_targets=2, seen=2, stratum=STRATUM))
    errors = seed_errors(mine, arm, reference) if len(seeds) > 1 else borrowed_errors(pairs)
    error = {(STRATUM, metric, arm): value for metric, value in errors.items()}
    return difference_table(scores, [arm], reference, METRICS, draw_error=error).assign(seeds=len(seeds))


def borrowed_errors(pairs: pd.DataFrame) -> dict[str, float]:
    """Standard error, by metric, of a difference of two fits with one seed each, from the seeds of the default; nan without."""
    means = pairs[pairs["arm"] == DEFAULT].groupby(["metric", "seed"])["value"].mean().groupby(level="metric")
    n = int(means.size().min()) if len(means) else 0
    if n < 2:
        return dict.fromkeys(METRICS, float("nan"))
    wider = student.ppf(0.975, n - 1) / student.ppf(0.975, BATCHES - 1)
    return {str(metric): float(value) for metric, value in (wider * means.std(ddof=1) * np.sqrt(2)).items()}


def seed_errors(rows: pd.DataFrame, arm: str, reference: str) -> dict[str, float]:
    """Standard error over n seeds of the mean difference, by metric; nan for one seed.

    `rows` has the columns method, metric, seed and value. `difference_table` multiplies the error by Student's t of `BATCHES`
    batches: what fewer seeds leave less certain is put in here.
    """
    means = rows.groupby(["metric", "seed", "method"])["value"].mean().unstack("method")
    gaps = (means[arm] - means[reference]).groupby(level="metric")
    n = int(gaps.size().iloc[0])
    if n < 2:
        return dict.fromkeys(METRICS, float("nan"))
    wider = student.ppf(0.975, n - 1) / student.ppf(0.975, BATCHES - 1)
    return {str(metric): float(value) for metric, value in (wider * gaps.std(ddof=1) / np.sqrt(n)).items()}
