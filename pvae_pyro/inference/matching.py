"""Loadings in units in which genes count alike, and the latents of another fit that are those of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..errors import InputError

if TYPE_CHECKING:
    from .fitting import Fit

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matched:
    """For each latent of the first fit (latents,): its number in the other or -1, the sign between them, and |cosine|."""

    partner: NDArray[np.int64]
    sign: Floats
    cosine: Floats


def match_latents(first: Fit, other: Fit) -> Matched:
    """Hungarian assignment on the |cosine| of loadings over the genes that both saw. Raises InputError for other genes."""
    if not np.array_equal(first.genes, other.genes):
        raise InputError("the fits were made on different genes, so their latents cannot be matched; fit the same screen.")
    genes = first.active & other.active
    return match_rows(*(loadings(fit)[:, genes[fit.active]] for fit in (first, other)))


def match_rows(first: Floats, other: Floats) -> Matched:
    """The same for loadings (latents, genes)."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (first, other)]
    cosine = unit[0] @ unit[1].T
    mine, its = linear_sum_assignment(-np.abs(cosine))
    partner, sign, match = np.full(len(cosine), -1), np.ones(len(cosine)), np.zeros(len(cosine))
    partner[mine] = its
    sign[mine] = np.where(cosine[mine, its] < 0, -1.0, 1.0)
    match[mine] = np.abs(cosine[mine, its])
    return Matched(partner, sign, match)


def loadings(fit: Fit) -> Floats:
    """Of the decoder (latents, active genes): sds of a gene's cells for one unit of a latent. Of a single run."""
    story, _ = fit.modules()
    return (story.decoder.responsive / story.spread.clamp_min(1e-6)).detach().double().numpy()
