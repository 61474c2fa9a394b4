"""Scores of predicted pseudobulks beside closed-form baselines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says about the measured pseudobulks of C conditions over G genes.

    mean (C, G); sd (C, G) of a Normal predictive distribution, or draws (S, C, G) from any other; neither
    for a point prediction. Draws take precedence over sd. Raises ValueError on shapes that disagree,
    non-finite values or a negative sd.
    """

    mean: NDArray[np.floating]
    sd: NDArray[np.floating] | None = None
    draws: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 2:
            raise ValueError(f"a prediction's mean has the shape (conditions, genes), not {self.mean.shape}")
        if self.sd is not None and (self.sd.shape != self.mean.shape or not (self.sd >= 0).all()):
            raise ValueError(f"a prediction's sd must be >= 0 and of shape {self.mean.shape}")
        if self.draws is not None and self.draws.shape[1:] != self.mean.shape:
            raise ValueError(f"draws {self.draws.shape} do not match conditions and genes {self.mean.shape}")
        for values in (self.mean, self.sd, self.draws):
            # a sum is non-finite when any value is, and needs no mask as large as the draws
            if values is not None and not np.isfinite(values.sum(dtype=float)):
                raise ValueError("a prediction holds values that are not finite")


__all__ = ["Prediction"]
