"""Positive controls: predictions that know the answer up to measurement noise, to see what a metric can tell at all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import false_discovery_control, ttest_ind_from_stats

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.effects import control_row
from pvae_pyro.evaluation.simple import TRAIN_MEAN

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

DUPLICATE = "technical duplicate"
INTERPOLATED = "interpolated duplicate"


def positive_controls(
    truth: ConditionSummary, training: ConditionSummary
) -> tuple[ConditionSummary, dict[str, Prediction]]:
    """A truth of half the cells, and predictions of it from the other half.

    "technical duplicate": the mean of the other half, X'. "interpolated duplicate": ``a X' + (1 - a) O`` per gene, O the
    mean of the training perturbations and ``a = 1 - p`` with p the adjusted p-value (Benjamini-Hochberg) of Welch's test
    of X' against the training control: it moves only what was found to move. "mean of the training perturbations": O,
    the negative control. Score the three with `scores.evaluate` and give them to `points.dynamic_range`. Conditions of
    fewer than four cells have no two halves with a spread and are left out. Raises InputError where none is left, or
    training has no control or no perturbation. Source: Miller et al. 2025; evaluation.md section 2.
    """
    perturbed = (np.asarray(training.design) != 0).any(axis=1)
    if not perturbed.any():
        raise InputError(
            "The training data hold no perturbation, so there is no mean of them to compare with."
        )
    zero = control_row(training)
    names = [name for name, n in zip(truth.conditions, truth.n_cells, strict=True) if n >= 4]
    if not names:
        raise InputError("Every condition has fewer than four cells, which cannot be halved; measure more.")
    whole = truth.restrict(names)
    centre = np.asarray(training.mean[perturbed].mean(axis=0), float)
    first = (whole.n_cells // 2)[:, None]  # summaries put the smaller half first
    other, target = whole.halves
    with np.errstate(divide="ignore", invalid="ignore"):
        test = ttest_ind_from_stats(
            other,
            np.sqrt(whole.variance),
            first,
            training.mean[zero],
            np.sqrt(training.variance[zero]),
            training.n_cells[zero],
            equal_var=False,
        )
    moved = 1 - false_discovery_control(np.where(np.isnan(test.pvalue), 1.0, test.pvalue), axis=1)
    half = dataclasses.replace(
        whole,
        mean=target,
        n_cells=whole.n_cells - whole.n_cells // 2,
        halves=np.full_like(whole.halves, np.nan),
    )
    return half, {
        DUPLICATE: Prediction(other),
        INTERPOLATED: Prediction(moved * other + (1 - moved) * centre),
        TRAIN_MEAN: Prediction(np.tile(centre, (len(names), 1))),
    }
