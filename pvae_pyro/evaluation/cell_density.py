"""Log density of held-out cells by importance weighting, a pure function of what a story and a guide say."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]

ENOUGH = 100  # latent samples per draw and cell, as evaluation.md 4.2 asks


def cell_log_density(log_joint: ArrayLike, log_proposal: ArrayLike) -> tuple[Array, Array]:
    """Log predictive density of N cells, and the effective share of their latent samples, (N,) each.

    ``log (1/S) sum_s (1/K) sum_k p(x_i, z_k | theta_s) / q(z_k | x_i, theta_s)`` from (S, K, N) values of the numerator,
    which holds likelihood and prior of the latents, and of the denominator: S draws of the globals, K samples of each cell's
    latents. In nats per cell; for one draw it is the IWAE bound, which is low by a bias that falls with K, so state K
    (``ENOUGH`` or more), and compare methods on the same cells, genes and units only. Effective share: ``1 / (S K sum w^2)``
    of the normalised weights: near 1 / (S K) one sample decides and the value means nothing. Raises ValueError for shapes that
    disagree. Source: Burda, Grosse & Salakhutdinov 2016; evaluation.md 4.2.
    """
    above, below = np.asarray(log_joint, float), np.asarray(log_proposal, float)
    if above.shape != below.shape or above.ndim != 3 or not above.shape[0] * above.shape[1]:
        raise ValueError(
            f"densities of (draws, samples, cells) are needed of both: {above.shape}, {below.shape}"
        )
    weight = (above - below).reshape(-1, above.shape[2])
    count = len(weight)
    total = logsumexp(weight, axis=0)
    effective = np.exp(2 * total - logsumexp(2 * weight, axis=0)) / count
    return np.asarray(total - np.log(count)), np.asarray(effective)
