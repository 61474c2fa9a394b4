"""How much of each single a pair shows, ``d_AB ~ c1 d_A + c2 d_B``, by a regression that outlying genes do not move.

The scores of genetic interactions of Norman et al. 2019 (Science 365:786) and GEARS: a description of a measured or a predicted
pair, no score of a method and never for selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.effects import mean_noise, request, single_effects

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]

GENES = 1000
_SUBSETS = 2000  # pairs of genes looked at where there are more
_TOLERANCE = 1e-8


def theil_sen(double: ArrayLike, first: ArrayLike, second: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """c1 and c2 of ``double ~ c1 first + c2 second`` over genes (G,) without an intercept; nan for fewer than two genes.

    The spatial median of the exact solutions for two genes each, over all pairs of genes or 2,000 of them drawn with the seed:
    up to 29 % of the genes may be anything. Noise in the singles shrinks it, as it shrinks every regression. Source: Dang, Peng,
    Wang & Zhang 2008, by scikit-learn.
    """
    from sklearn.linear_model import TheilSenRegressor

    y, x = np.asarray(double, float), np.column_stack([np.asarray(first, float), np.asarray(second, float)])
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"a double and its singles need values of the same genes: {y.shape}, {x.shape}")
    if len(y) < 2:
        return float("nan"), float("nan")
    how = {"max_subpopulation": _SUBSETS, "tol": _TOLERANCE, "max_iter": 10_000, "random_state": seed}
    found = TheilSenRegressor(fit_intercept=False, **how).fit(x, y).coef_
    return float(found[0]), float(found[1])


def coefficients(double: ArrayLike, first: ArrayLike, second: ArrayLike, seed: int = 0) -> dict[str, float]:
    """c1, c2, magnitude ``sqrt(c1^2 + c2^2)`` (additive: 1.414), dominance ``|log10(|c1| / |c2|)|`` (0: equal shares, also of
    opposite signs) and fit, the correlation of ``c1 first + c2 second`` with the double, of one pair (G,)."""
    c1, c2 = theil_sen(double, first, second, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        dominance = float(np.abs(np.log10(np.abs(c1)) - np.log10(np.abs(c2))))
    y, fitted = np.asarray(double, float), c1 * np.asarray(first, float) + c2 * np.asarray(second, float)
    varies = len(y) > 1 and y.std() > 0 and fitted.std() > 0
    fit = float(np.corrcoef(y, fitted)[0, 1]) if varies else float("nan")
    return {"c1": c1, "c2": c2, "magnitude": float(np.hypot(c1, c2)), "dominance": dominance, "fit": fit}


def gi_table(
    pairs: ConditionSummary,
    training: ConditionSummary,
    predicted: ArrayLike | None = None,
    genes: int = GENES,
    seed: int = 0,
) -> pd.DataFrame:
    """A row per pair of trained singles: condition, first, second, c1, c2, magnitude, dominance, fit, additive_magnitude, genes.

    pairs: measured conditions; predicted (conditions, G): means to use in place of theirs. Shifts from the training control at
    the pair's doses; genes: that many with the clearest shifts of the two singles, which the pair does not choose.
    additive_magnitude: what a pair that adds would show at these numbers of cells: the measured singles, scaled down to the
    squared length that is left without noise, and their sum get noise of this size anew; compare magnitudes with it
    rather than with 1.414. Raises InputError where there is no such pair.
    """
    effects = single_effects(training)
    asked = request(effects, pairs.design, 1, pairs.targets)
    rows = np.flatnonzero(asked.complete & (asked.n_targets == 2))
    if not len(rows):
        raise InputError("No pair has both its targets trained alone, so there are no singles to compare it with.")
    means = np.asarray(pairs.mean if predicted is None else predicted, float)
    if means.shape != pairs.mean.shape:
        raise ValueError(f"predicted means {means.shape} do not match the conditions {pairs.mean.shape}")
    noise, rng, found = mean_noise(pairs), np.random.default_rng(seed), []
    for row in rows:
        targets = np.flatnonzero(asked.design[row])
        dose = asked.design[row, targets][:, None]
        shifts, variances = dose * effects.shift[targets], dose**2 * effects.noise[targets]
        chosen = _clearest(shifts, variances + effects.control_noise, genes)
        a, b = shifts[:, chosen]
        own = coefficients((means[row] - effects.control)[chosen], a, b, seed)
        parts = variances[:, chosen], noise[row, chosen], effects.control_noise[chosen]
        additive = _additive(shifts[:, chosen], *parts, rng)
        reference = float(np.hypot(*theil_sen(*additive, seed)))
        first, second = (effects.targets[place] for place in targets)
        found.append(
            {"condition": pairs.conditions[row], "first": first, "second": second, **own}
            | {"additive_magnitude": reference, "genes": len(chosen)}
        )
    return pd.DataFrame(found)


def _additive(
    shifts: Array, variances: Array, of_pair: Array, of_control: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """A simulated pair that adds and its singles, (G,) each, whose common control has noise, too."""
    size = (shifts**2).sum(axis=1)
    left = np.maximum(size - (variances + of_control).sum(axis=1), 0) / np.where(size > 0, size, 1.0)
    a, b = np.sqrt(left)[:, None] * shifts
    scale = np.sqrt(np.stack([of_control, *variances, of_pair]))
    control, first, second, double = rng.normal(size=scale.shape) * scale
    return a + b + double - control, a + first - control, b + second - control


def _clearest(shifts: Array, variances: Array, count: int) -> NDArray[np.int64]:
    """The genes, at most ``count``, with the largest squared shifts (2, G) in units of their noise, in their own order."""
    known = (variances > 0).all(axis=0)
    clear = np.where(known, (shifts**2 / np.where(known, variances, 1.0)).sum(axis=0), -1.0)
    kept = np.argsort(-clear, kind="stable")[: min(count, int(known.sum()))]
    return np.sort(kept)
