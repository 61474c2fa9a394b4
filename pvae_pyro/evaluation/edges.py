"""Edges of a fit against a known graph: latents matched first, then ranking, distance, and false discoveries as claimed.

Latents are matched by their loadings, never by the graph itself. A graph [i, j] holds the edge of j in the equation of i.
Source: evaluation.md 4.5 and 4.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.identifiability import shd
from pvae_pyro.evaluation.interactions import average_precision
from pvae_pyro.inference.matching import loadings, match_rows

if TYPE_CHECKING:
    from pvae_pyro.inference import Fit

Array = NDArray[np.float64]

ALPHAS = (0.05, 0.1, 0.2)
LIKELY = 0.5  # probability of an edge that counts in the structural Hamming distance


@dataclass(frozen=True, eq=False)
class Aligned:
    """Edges of a fit between the T true latents: probability and mean weight (T, T), sign turned, scale the fit's own, zero
    without a partner and where the fit's order of latents has no such edge; |cosine| (T,) of loadings of matched latents.
    """

    probability: Array
    weight: Array
    cosine: Array


def bayesian_fdr(probability: ArrayLike, truth: ArrayLike, alphas: Sequence[float] = ALPHAS) -> pd.DataFrame:
    """What discoveries at a claimed rate are worth: alpha, found, realised (share that is false; 0 of none), power.

    At alpha the largest set, most probable first, whose mean ``1 - probability`` is at most alpha. probability, truth: any one
    shape. Power is nan where nothing is true. Raises ValueError for shapes that differ.
    """
    p, true = np.asarray(probability, float).ravel(), np.asarray(truth, bool).ravel()
    if np.shape(probability) != np.shape(truth):
        raise ValueError(f"one probability per case is needed: {np.shape(probability)}, {np.shape(truth)}")
    order = np.argsort(-p, kind="stable")
    claimed = np.cumsum(1 - p[order]) / np.arange(1, p.size + 1)
    rows = []
    for alpha in alphas:
        found = true[order[: int((claimed <= alpha).sum())]]
        realised = float(1 - found.mean()) if len(found) else 0.0
        power = float(found.sum() / true.sum()) if true.any() else float("nan")
        rows.append({"alpha": alpha, "found": len(found), "realised": realised, "power": power})
    return pd.DataFrame(rows)


def edge_scores(probability: ArrayLike, graph: ArrayLike, alphas: Sequence[float] = ALPHAS) -> dict[str, float]:
    """Scores of edge probabilities (T, T) against a true graph (T, T), whose edges are its entries other than zero.

    auprc over ordered pairs, chance what any order gets (the share of edges); skeleton_auprc, skeleton_chance the same over
    unordered pairs, directions left aside; brier; shd at probability above 0.5, a reversed edge counted once, and shd_empty,
    that of no edge at all; edges, their number; at each alpha found, realised and power of ``bayesian_fdr``, as "realised_0.1".
    """
    p, true = np.asarray(probability, float), np.asarray(graph, float) != 0
    if p.ndim != 2 or p.shape != true.shape or p.shape[0] != p.shape[1] or len(p) < 2:
        raise ValueError(f"square matrices of two or more latents are needed: {p.shape}, {true.shape}")
    apart, above = ~np.eye(len(p), dtype=bool), np.triu_indices(len(p), 1)
    either, linked = np.maximum(p, p.T)[above], (true | true.T)[above]
    out = {
        "auprc": average_precision(p[apart], true[apart]),
        "chance": float(true[apart].mean()),
        "skeleton_auprc": average_precision(either, linked),
        "skeleton_chance": float(linked.mean()),
        "brier": float(((p - true)[apart] ** 2).mean()),
        "shd": float(shd(p, true, LIKELY)),
        "shd_empty": float(linked.sum()),
        "edges": float(true[apart].sum()),
    }
    for row in bayesian_fdr(p[apart], true[apart], alphas).itertuples():
        out |= {f"{name}_{row.alpha:g}": float(getattr(row, name)) for name in ("found", "realised", "power")}
    return out


def align_edges(fit: Fit, true_loadings: ArrayLike, draws: int = 200, seed: int = 0) -> Aligned:
    """Edges of a fit between true latents, matched by the |cosine| of loadings (T, genes of the fit).

    Each gene in sds of its cells, for the truth as for the fit. Raises InputError for an ensemble, whose members have latents of
    their own, and for loadings of other genes.
    """
    if len(fit.members) > 1:
        raise InputError("members of an ensemble have latents of their own; score the edges of one member at a time.")
    known = np.asarray(true_loadings, float)
    if known.ndim != 2 or known.shape[1] != len(fit.genes):
        raise InputError(f"true loadings must be (latents, {len(fit.genes)} genes of the fit), but their shape is {known.shape}.")
    story, _ = fit.modules()
    spread = story.spread.clamp_min(1e-6).double().numpy()
    matched = match_rows(known[:, fit.active] / spread, loadings(fit))
    table = fit.edges_table(draws, seed).set_index(["target", "source"])
    out = np.zeros((2, len(known), len(known)))
    for i, a in enumerate(matched.partner.tolist()):
        for j, b in enumerate(matched.partner.tolist()):
            if a >= 0 and b >= 0 and (a, b) in table.index:
                row = table.loc[(a, b)]
                out[:, i, j] = row["probability"], row["mean"] * matched.sign[i] * matched.sign[j]
    return Aligned(out[0], out[1], matched.cosine)


def score_edges(fit: Fit, graph: ArrayLike, true_loadings: ArrayLike, draws: int = 200, seed: int = 0) -> dict[str, float]:
    """``edge_scores`` of a fit after ``align_edges``; also matched_cosine (mean) and sign_accuracy of true edges above 0.5."""
    aligned = align_edges(fit, true_loadings, draws, seed)
    true = np.asarray(graph, float)
    right = (aligned.probability > LIKELY) & (true != 0)
    same = float((np.sign(aligned.weight) == np.sign(true))[right].mean()) if right.any() else float("nan")
    return edge_scores(aligned.probability, true) | {"matched_cosine": float(aligned.cosine.mean()), "sign_accuracy": same}
