"""Are the programs of another fit the same ones? Matched loadings and effects, beside what a random rotation reaches."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ortho_group

from pvae_pyro.inference.matching import match_rows
from pvae_pyro.inference.programs import Programs

from ..run_arms import Rows

Floats = NDArray[np.float64]


def agreement(first: Programs, other: Programs) -> tuple[Floats, Floats]:
    """For each latent of `first` (latents,): |cosine| of loadings with its partner, and correlation of effects over targets."""
    return _agreement(first.loadings, first.effects, other.loadings, other.effects)


def rotated_floor(one: Programs, seed: int = 0, draws: int = 100) -> tuple[float, float]:
    """Mean |cosine| and correlation with the same programs in random axes: what the span alone gives.

    Rotated where loadings are orthonormal, so that effects times loadings stay what they are.
    """
    u, s, rows = np.linalg.svd(one.loadings, full_matrices=False)
    on_rows = one.effects @ (u * s)
    turns = ortho_group.rvs(len(rows), size=draws, random_state=seed)
    found = [_agreement(one.loadings, one.effects, turn.T @ rows, on_rows @ turn) for turn in turns]
    cosine, correlation = np.mean(found, axis=(0, 2))
    return float(cosine), float(correlation)


def rows(programs: list[Programs]) -> Rows:
    """Agreement of every pair of fits, and of each latent of the first fit with all others."""
    pairs = [agreement(a, b) for a, b in combinations(programs, 2)]
    floor = rotated_floor(programs[0])
    out: Rows = []
    for i, name in enumerate(("loadings_cosine", "effects_correlation")):
        values = np.array([pair[i] for pair in pairs])  # (pairs, latents)
        out += [("matched", name, float(values.mean())), ("matched, worst latent of a pair", name, float(values.min())),
                ("matched, share of latents above 0.9", name, float((values > 0.9).mean())),
                ("random rotation", name, floor[i])]  # fmt: skip
        of_first = np.array([pair[i] for pair in pairs[: len(programs) - 1]]).min(0)
        out += [(f"latent {k}", f"worst_{name}", float(value)) for k, value in enumerate(of_first)]
    return out


def _agreement(loadings: Floats, effects: Floats, other_loadings: Floats, other_effects: Floats) -> tuple[Floats, Floats]:
    found = match_rows(loadings, other_loadings)
    paired = [_correlation(effects[:, k], s * other_effects[:, p]) if p >= 0 else 0.0
              for k, (p, s) in enumerate(zip(found.partner, found.sign, strict=True))]  # fmt: skip
    return found.cosine, np.array(paired)


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 1e-12 else 0.0
