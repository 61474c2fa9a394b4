"""How well the shifts of trained conditions tell the responsive loadings: the closed form behind `UncertainLoadings`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .warm_start import Start

Array = NDArray[np.float64]

LEAST_KNOWN = 0.2  # squared cosine of a measured axis with the true one: an axis of noise has a small shift, not a wide law


def loading_law(start: Start) -> tuple[Array, Array]:
    """`turn` (latents, axes) and `sd` (axes, genes): the error of the loadings is turn @ D with D_jg ~ Normal(0, sd_jg).

    Axes are the principal directions of the trained shifts, in which errors are independent; latents are a rotation of them.
    """
    weighted = start.scores / start.score_sd  # sqrt(cells) x shrunk shifts in sds of a cell: a signal in unit noise
    energy, axes = np.linalg.eigh(weighted.T @ weighted)
    known = axis_known(energy, len(weighted) - 1, len(start.outside))
    error = np.sqrt((1 - known) / (known * len(start.outside)))  # of a unit axis, for each gene in its sd
    return start.unit[:, None] * axes, error[:, None] * start.outside


def axis_known(energy: Array, rows: int, genes: int) -> Array:
    """Squared cosine of measured and true axis (axes,), `energy` being the squares of optimally shrunk singular values of a
    signal (rows, genes) in unit noise.

    With s^2 the true squared singular value, the measured one is y^2 = (s^2 + rows) (s^2 + genes) / s^2, it was shrunk to
    sqrt((y^2 - rows - genes)^2 - 4 rows genes) / y, and the squared cosine is (s^4 - rows genes) / (s^2 (s^2 + genes)).
    Benaych-Georges & Nadakuditi 2012, arXiv 1103.2221; Gavish & Donoho 2017, doi:10.1109/TIT.2017.2653801.
    """
    energy = np.maximum(energy, 0)
    middle = rows + genes + energy / 2
    measured = middle + np.sqrt(middle**2 - (genes - rows) ** 2)
    signal = (measured - rows - genes + np.sqrt(energy * measured)) / 2
    cosine = (signal**2 - rows * genes) / (signal * (signal + genes))
    return np.clip(cosine, LEAST_KNOWN, 1.0)
