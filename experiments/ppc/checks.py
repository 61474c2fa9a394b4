"""Statistics of cells under weights that make simulated, training and held-out cells comparable."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cells import Array, Stratum, seen

LEADING = 30  # genes whose correlations are compared
WELL_SEEN = 0.5  # share of training cells with a count from which a gene is called well seen


@dataclass(frozen=True, eq=False)
class Look:
    """What a set of cells looks like, conditions and library sizes weighted as the held-out cells are.

    zeros, variance (genes,): share of zeros, mean within-condition variance; correlation (pairs of leading genes,)
    within conditions; kurtosis, q999: of residuals standardised by gene within conditions, well-seen genes;
    detected (3,): share of genes seen by third of library size; slope: of that share on log library.
    """

    mean: Array
    zeros: Array
    variance: Array
    correlation: Array
    kurtosis: float
    q999: float
    detected: Array
    slope: float


def look(parts: list[Stratum], sets: list[Array], well_seen: NDArray[np.bool_], leading: NDArray[np.int64]) -> Look:
    """`sets`: one set of cells (cells, genes) for every stratum; it gets the weight of the stratum's held-out cells."""
    size = np.array([len(s.held_out) for s in parts], dtype=float)
    share = size / size.sum()
    zeros = sum(w * (1 - seen(x, s.library).mean(axis=0)) for w, s, x in zip(share, parts, sets, strict=True))
    by_condition: dict[str, list[int]] = defaultdict(list)
    for i, s in enumerate(parts):
        by_condition[s.condition].append(i)
    mean, variance, covariance = 0.0, 0.0, 0.0
    residuals, weights = [], []
    for rows in by_condition.values():
        x = np.concatenate([sets[i] for i in rows])
        w = np.concatenate([np.full(len(sets[i]), size[i] / len(sets[i])) for i in rows])
        total, weight = w.sum(), w.sum() / size.sum()
        centre, freedom = w @ x / total, total - w @ w / total  # unbiased under weights: twenty cells are few
        r = x - centre
        mean, variance = mean + weight * centre, variance + weight * (w @ r**2) / freedom
        covariance = covariance + weight * (r[:, leading].T * w) @ r[:, leading] / freedom
        residuals.append(r[:, well_seen])
        weights.append(w)
    r, w = np.concatenate(residuals), np.concatenate(weights)
    w = w / w.sum()
    r = r / np.sqrt(np.maximum(w @ r**2, 1e-12))
    sd = np.sqrt(np.diag(covariance))
    upper = np.triu_indices(len(leading), 1)
    third = np.array([s.third for s in parts])
    seen_share = np.array([seen(x, s.library).mean() for s, x in zip(parts, sets, strict=True)])
    depth = np.array([np.log(s.library).mean() for s in parts])
    return Look(
        mean=np.asarray(mean),
        zeros=np.asarray(zeros),
        variance=np.asarray(variance),
        correlation=(covariance / np.outer(sd, sd))[upper],
        kurtosis=float((w @ r**4).mean()),
        q999=_quantile(np.abs(r).ravel(), np.repeat(w / r.shape[1], r.shape[1]), 0.999),
        detected=np.array([np.average(seen_share[third == t], weights=size[third == t]) for t in range(3)]),
        slope=float(np.polyfit(depth, seen_share, 1, w=np.sqrt(size))[0]),
    )


def compared(found: Look, truth: Look, well_seen: NDArray[np.bool_], n: int) -> dict[str, float]:
    """Metrics of one look against that of the `n` held-out cells; `genes_lacking_zeros` is what a zero inflation would mend."""
    varies = truth.variance > 1e-8
    ratio = np.log(np.maximum(found.variance[varies], 1e-12) / truth.variance[varies])
    gap = found.zeros - truth.zeros
    beyond_noise = gap / np.sqrt(np.maximum(found.zeros * (1 - found.zeros), 1 / n) / n)
    return {
        "zeros_gap": float(gap.mean()),
        "zeros_error": float(np.abs(gap).mean()),
        "zeros_gap_well_seen": float(gap[well_seen].mean()),
        "zeros_error_well_seen": float(np.abs(gap[well_seen]).mean()),
        "genes_lacking_zeros": float((beyond_noise < -2).mean()),
        "genes_with_too_many_zeros": float((beyond_noise > 2).mean()),
        "variance_ratio": float(np.exp(np.median(ratio))),
        "variance_error": float(np.exp(np.median(np.abs(ratio)))),
        "kurtosis": found.kurtosis,
        "q999": found.q999,
        "library_slope": found.slope,
        "correlation_rms": float(np.sqrt(np.mean((found.correlation - truth.correlation) ** 2))),
        "correlation_agreement": float(np.corrcoef(found.correlation, truth.correlation)[0, 1]),
        "correlation_size": float(np.sqrt(np.mean(found.correlation**2))),
    }


def effect_sizes(
    drawn: NDArray[np.floating], measured: NDArray[np.floating], genes: NDArray[np.bool_]
) -> dict[str, float]:
    """Sizes of shifts from control over conditions and genes, of simulated pseudobulks over measured ones.

    drawn (draws, conditions, genes), measured (conditions, genes). effects_q90, q99: quantile of |shift|, mean over draws as a
    multiple of the measured one; effects_p: share of draws whose 99 % quantile is above the measured one.
    """
    levels = (0.9, 0.99)  # in sparse cells more than half of all measured shifts are exactly zero
    quantiles = np.stack([np.quantile(np.abs(one[:, genes]), levels) for one in drawn])
    own = np.quantile(np.abs(measured[:, genes]), levels)
    out = {f"effects_q{round(100 * q)}": float(quantiles[:, i].mean() / own[i]) for i, q in enumerate(levels)}
    return out | {"effects_p": float((quantiles[:, -1] > own[-1]).mean())}


def beyond(parts: list[Stratum], sets: list[Array], genes: NDArray[np.bool_]) -> dict[str, float]:
    """Share of held-out values above, and below, all of n simulated ones, times n + 1: at most 1 where the model is right."""
    above, below, total = 0, 0, 0
    for s, x in zip(parts, sets, strict=True):
        factor = len(x) + 1
        above += factor * int((s.held_out[:, genes] > x[:, genes].max(axis=0) + 1e-6).sum())
        below += factor * int((s.held_out[:, genes] < x[:, genes].min(axis=0) - 1e-6).sum())
        total += s.held_out[:, genes].size
    return {"tail_above": above / total, "tail_below": below / total}


def _quantile(values: Array, weights: Array, level: float) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, level * cumulative[-1])])
