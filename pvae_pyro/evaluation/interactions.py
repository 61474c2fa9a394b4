"""What pairs do beyond the sum of their singles: measured, predicted, and called with a probability; pure functions.

``e_AB = d_AB - d_A - d_B`` per gene, 0 where effects add. Predicted interactions have to be a method's own, its combination
minus the sum of *its own* singles (`Posterior.interaction`): subtracting the measured singles instead would put their
noise on both sides. Source: evaluation.md section 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.bootstrap import RESAMPLES, interval, resample_ratios
from pvae_pyro.evaluation.calibration import reliability
from pvae_pyro.evaluation.effects import mean_noise, request, single_effects

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FALSE_DISCOVERY = 0.05
SIZES = (0.1, 0.25, 0.5)
"""Sizes of interaction asked for, in the unit of the data."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Measured interactions of P combinations over G genes: e (P, G), their standard errors se (P, G), and names."""

    conditions: tuple[str, ...]
    e: Array
    se: Array


def measured_interactions(truth: ConditionSummary, training: ConditionSummary) -> Measured:
    """Interactions of the combinations of truth whose every target was trained alone, doses included.

    ``SE^2 = s2_AB / n_AB + sum_p u_p^2 s2_p / n_p + (1 - sum_p u_p)^2 s2_0 / n_0``, for two singles at dose 1 that of
    evaluation.md. Singles and control are those of training, the combination that of truth. Raises InputError where there
    is no such combination.
    """
    effects = single_effects(training)
    asked = request(effects, truth.design, 1, truth.targets)
    rows = np.flatnonzero(asked.complete)
    if not len(rows):
        raise InputError(
            "No measured combination has all its targets trained alone, so no interaction is known."
        )
    doses = asked.design[rows]
    e = np.asarray(truth.mean, float)[rows] - effects.control - doses @ effects.shift
    variance = mean_noise(truth)[rows] + doses**2 @ effects.noise
    variance += (1 - doses @ effects.control_weight)[:, None] ** 2 * effects.control_noise
    return Measured(tuple(truth.conditions[row] for row in rows), e, np.sqrt(variance))


def resistant(e: ArrayLike, se: ArrayLike) -> Mask:
    """Whether a combination (P,) resists the additive rule: the top third by ``sum_g e^2 - SE^2``, its error without noise.

    A stratum by the outcome: it says how methods do where adding fails, is flattering to none but additive, and is
    reported apart. ``round(P / 3)`` combinations, the first of equals.
    """
    error = (np.asarray(e, float) ** 2 - np.asarray(se, float) ** 2).sum(axis=1)
    chosen = np.zeros(len(error), bool)
    chosen[np.argsort(-error, kind="stable")[: round(len(error) / 3)]] = True
    return chosen


def skill_terms(e: ArrayLike, predicted: ArrayLike, se: ArrayLike) -> tuple[Array, Array]:
    """Terms (P,) of ``skill = 1 - sum (e - ehat)^2_corr / sum e^2_corr``, which is the ratio of their sums.

    Both sums have the sampling variance SE^2 taken off, so ``skill = sum [e^2 - (e - ehat)^2] / sum [e^2 - SE^2]``: 0 is
    additive, 1 perfect, below 0 worse than additive.
    """
    real, guess, error = (np.asarray(one, float) for one in (e, predicted, se))
    return (real**2 - (real - guess) ** 2).sum(axis=1), (real**2 - error**2).sum(axis=1)


def slope_terms(e: ArrayLike, predicted: ArrayLike) -> tuple[Array, Array]:
    """Terms (P,) of the slope through the origin of measured on predicted interactions, ``sum e ehat / sum ehat^2``.

    1 is right, below 1 predicts interactions that are too large. Noise of e leaves it unbiased.
    """
    real, guess = np.asarray(e, float), np.asarray(predicted, float)
    return (real * guess).sum(axis=1), (guess**2).sum(axis=1)


def clear_interactions(e: ArrayLike, se: ArrayLike) -> Mask:
    """Genes (P, G) whose ``|e| / SE`` is significant at 5 % false discovery (Benjamini-Hochberg) within their pair."""
    real, error = np.asarray(e, float), np.asarray(se, float)
    z = np.where(error > 0, np.abs(real) / np.where(error > 0, error, 1.0), 0.0)
    return np.asarray(false_discovery_control(2 * ndtr(-z), axis=1) <= FALSE_DISCOVERY)


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """Area under precision over recall, ``sum_k (R_k - R_k-1) P_k`` over the distinct scores, large first; nan without a label.

    What chance gets is the share of labels (prevalence), whatever the order.
    """
    s, y = np.asarray(score, float), np.asarray(label, bool)
    if not y.any():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    last = np.append(np.flatnonzero(np.diff(s[order]) != 0), len(s) - 1)  # ends of runs of equal scores
    hits = np.cumsum(y[order])[last]
    gained = np.diff(hits, prepend=0) / y.sum()
    return float((gained * hits / (last + 1)).sum())


def interaction_table(
    measured: Measured, predicted: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """How well interactions are predicted (P, G), over all combinations and over the resistant ones.

    Columns stratum ("all", "resistant"), metric, value, low, high (95 % bootstrap over combinations), combinations. Metrics:
    skill, slope; auprc of clear interactions by |ehat|, both tails, its prevalence (what chance gets), and sign_accuracy, the
    share of clear interactions whose sign is predicted (an interaction predicted as exactly 0 counts half).
    """
    e, se, guess = measured.e, measured.se, np.asarray(predicted, float)
    if guess.shape != e.shape:
        raise ValueError(f"predicted interactions {guess.shape} do not match the measured {e.shape}")
    clear = clear_interactions(e, se)
    auprc = np.array([average_precision(np.abs(g), y) for g, y in zip(guess, clear, strict=True)])
    some = clear.any(axis=1).astype(float)
    right = 0.5 + 0.5 * np.sign(e) * np.sign(guess)
    terms = {
        "skill": skill_terms(e, guess, se),
        "slope": slope_terms(e, guess),
        "auprc": (np.where(some > 0, auprc, 0.0), some),
        "prevalence": (clear.mean(axis=1) * some, some),
        "sign_accuracy": ((right * clear).sum(axis=1), clear.sum(axis=1).astype(float)),
    }
    rows = []
    for stratum, member in (("all", np.ones(len(e), bool)), ("resistant", resistant(e, se))):
        if not member.any():
            continue
        above, below = (np.column_stack([one[side] for one in terms.values()])[member] for side in (0, 1))
        low, high = interval(resample_ratios(above, below, resamples, seed))
        for place, metric in enumerate(terms):
            total = below[:, place].sum()
            value = above[:, place].sum() / total if total > 0 else np.nan
            rows.append((stratum, metric, value, low[place], high[place], int((below[:, place] != 0).sum())))
    return pd.DataFrame(rows, columns=["stratum", "metric", "value", "low", "high", "combinations"])


@dataclass(frozen=True, eq=False)
class Calls:
    """Probabilities (K, P, G) that a *measured* interaction is above +size or below -size, for sizes (K,); mean (P, G).

    Size 0 is first, so that ``above[0]`` is P(e > 0).
    """

    sizes: tuple[float, ...]
    above: Array
    below: Array
    mean: Array

    @classmethod
    def of(cls, draws: Iterable[ArrayLike], se: ArrayLike, sizes: Iterable[float] = SIZES) -> Calls:
        """draws: per combination those of the latent interaction, (S, G), such as ``Posterior.interaction(...).draws``.

        se (P, G) is the noise of the measured one, which a draw of the latent one lacks: ``P(e > size) = mean_s Phi((draw_s -
        size) / SE)``. Combinations are read one at a time, so that memory holds the draws of one. An array (S, P, G) of all
        goes in as ``numpy.moveaxis(draws, 1, 0)``. Give se = 0 for probabilities of the latent interaction itself.
        """
        asked, error = (0.0, *sizes), np.asarray(se, float)
        above, below, mean = [], [], []
        for row, drawn in enumerate(draws):
            x = np.asarray(drawn, float)
            above.append([_share(x - size, error[row]) for size in asked])
            below.append([_share(-x - size, error[row]) for size in asked])
            mean.append(x.mean(axis=0))
        if len(mean) != len(error):
            raise ValueError(f"draws of {len(mean)} combinations do not match {len(error)} standard errors")
        return cls(asked, np.swapaxes(above, 0, 1), np.swapaxes(below, 0, 1), np.array(mean))


def call_reliability(
    calls: Calls, e: ArrayLike, counted: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """How often measured interactions e (P, G) are what was called with a probability.

    The columns of ``calibration.reliability`` after call and size: "stronger" is |e| > size, "synergy" e > size, "opposite"
    e < -size, "sign" e > 0. counted (G,) or (P, G): genes to count.
    """
    real = np.asarray(e, float)
    parts = [_called("sign", 0.0, calls.above[0], real > 0, counted, resamples, seed)]
    for k, size in enumerate(calls.sizes[1:], start=1):
        up, down = calls.above[k], calls.below[k]
        parts += [
            _called(
                "stronger", size, np.minimum(up + down, 1.0), np.abs(real) > size, counted, resamples, seed
            ),
            _called("synergy", size, up, real > size, counted, resamples, seed),
            _called("opposite", size, down, real < -size, counted, resamples, seed),
        ]
    return pd.concat([one for one in parts if len(one)], ignore_index=True)


def _called(
    call: str, size: float, p: Array, happened: Mask, counted: ArrayLike | None, resamples: int, seed: int
) -> pd.DataFrame:
    table = reliability(np.clip(p, 0.0, 1.0), happened, counted, resamples=resamples, seed=seed)
    table.insert(0, "call", call)
    table.insert(1, "size", size)
    return table


def _share(gap: Array, error: Array) -> Array:
    """Mean over draws (S, G) of Phi(gap / error), a step where error is 0."""
    sure = 0.5 + 0.5 * np.sign(gap)
    smooth = ndtr(gap / np.where(error > 0, error, 1.0))
    return np.asarray(np.where(error > 0, smooth, sure).mean(axis=0))
