"""Size of what trained combinations do outside the span of the loadings."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..story.composition import Interaction
from .warm_start import Start

PRIOR_WORTH = 4  # combinations as many as the prior is worth


def outside_unit(start: Start, rows: NDArray[np.int64], part: Interaction) -> float:
    """Size of the residuals r of these combinations in multiples of what the prior says, `outside` sds of a gene.

    The shift of d outside the span has mean square outside^2 E surprise^2 + noise / n_d in gene sds. Loadings are chosen on the
    same shifts, so that of the noise a share (1 - K / conditions)(1 - K / genes) is left outside of K of them.
    Mean squares are pooled over combinations and genes, with the prior's own worth `PRIOR_WORTH` combinations.
    """
    variation, rank = start.variation, start.rank
    if part.outside == 0 or not len(rows):
        return 1.0
    basis, _ = np.linalg.qr(variation.whiten(start.responsive * start.slope).T)
    shifts = variation.whiten(variation.means[rows] - start.level)
    left = variation.unwhiten(shifts - (shifts @ basis) @ basis.T) / variation.sd
    n_cells = (start.score_sd[rows, 0] * start.unit[0]) ** -2
    share = (1 - rank / len(variation.means)) * (1 - rank / variation.means.shape[1])
    found = np.maximum((left**2).mean(axis=1) - share / n_cells, 0).sum()
    stated = part.outside**2 * math.exp(2 * part.surprise_spread**2)
    return float(np.sqrt((found / stated + PRIOR_WORTH) / (len(rows) + PRIOR_WORTH)))
