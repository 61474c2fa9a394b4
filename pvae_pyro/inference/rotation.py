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
