"""Rotation of latent axes towards sparse effects (design 3.1): singular vectors are an arbitrary basis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def varimax(scores: Array, iterations: int = 1000, tolerance: float = 1e-9) -> Array:
    """Orthogonal matrix R (K, K) that makes `scores` @ R (N, K) sparse by the varimax criterion (Kaiser 1958)."""
    n, k = scores.shape
    rotation, last = np.eye(k), 0.0
    for _ in range(iterations if k > 1 else 0):
        rotated = scores @ rotation
        gradient = scores.T @ (rotated**3 - rotated * (rotated**2).mean(axis=0))
        u, s, vt = np.linalg.svd(gradient)
        rotation = u @ vt
        if s.sum() < last * (1 + tolerance):
            break
        last = s.sum()
    return rotation


def spike_slab_fit(scores: Array, variance: Array, iterations: int = 100) -> tuple[Array, Array]:
    """Inclusion probabilities (N, K) and rates (K,) of scores ~ pi Normal(0, slab + variance) + (1 - pi) Normal(0, variance).

    `variance` (N, K) is the sampling variance of each score; pi and slab of each column by EM.
    """
    n, k = scores.shape
    v = variance
    rate, slab = np.full(k, 0.5), np.maximum((scores**2 - v).mean(axis=0) / 0.5, 1e-6)
    member = np.full((n, k), 0.5)
    for _ in range(iterations):
        log_odds = (
            np.log(rate / (1 - rate)) - 0.5 * np.log1p(slab / v) + 0.5 * scores**2 * (1 / v - 1 / (slab + v))
        )
        member = 1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))
        rate = np.clip(member.mean(axis=0), 0.05, 0.95)
        mean, spread = scores * slab / (slab + v), slab * v / (slab + v)
        slab = np.maximum(
            (member * (mean**2 + spread)).sum(axis=0) / np.maximum(member.sum(axis=0), 1e-9), 1e-8
        )
    return member, rate
