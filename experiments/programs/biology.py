"""Do targets that are known to work together share a program? Each statistic against every other group of as many targets."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Stated before any fit was looked at. Papalexi: receptor, kinase and signal of interferon gamma.
INTERFERON = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
NEXT_TO_IT = "IRF1"  # induced by STAT1: expected to be the target nearest to the four
# Norman: families of transcription factors or inhibitors whose members should do alike
FAMILIES = {
    "CEBP factors": ("CEBPA", "CEBPB", "CEBPE"),
    "CDK inhibitors": ("CDKN1A", "CDKN1B", "CDKN1C"),
    "FOX factors": ("FOXA1", "FOXA3", "FOXF1", "FOXL2"),
}
MOST_GROUPS = 20_000


def cosine(effects: Floats) -> Floats:
    """Mean cosine of all pairs inside groups: effects (groups, members, features) -> (groups,); no effect has cosine 0."""
    unit = effects / np.maximum(np.linalg.norm(effects, axis=-1, keepdims=True), 1e-12)
    n = effects.shape[-2]
    total = (unit.sum(-2) ** 2).sum(-1) - (unit**2).sum((-2, -1))
    return np.asarray(total / (n * (n - 1)))


def in_one_latent(effects: Floats) -> Floats:
    """Share of the squared effects of a group that lies in its one largest latent, targets weighing alike: (groups,)."""
    squared = effects**2
    share = squared / np.maximum(squared.sum(-1, keepdims=True), 1e-24)
    return np.asarray(share.mean(-2).max(-1))


STATISTICS = {"cosine": cosine, "share_in_one_latent": in_one_latent}


def groups(n: int, size: int, seed: int = 0) -> NDArray[np.int64]:
    """All groups of `size` of n targets, (groups, size); above 20,000 as many random ones."""
    if comb(n, size) <= MOST_GROUPS:
        return np.array(list(combinations(range(n), size)))
    generator = np.random.default_rng(seed)
    return np.argsort(generator.random((MOST_GROUPS, n)), axis=1)[:, :size]


def against_random_groups(effects: Floats, members: list[int], statistic: str) -> tuple[float, float, float]:
    """Value of a group of targets (rows of `effects`), median of random groups, and the share of these that are as large (p).

    The group itself is among them, or counted among them, so that p is never zero.
    """
    statistic_of, drawn = STATISTICS[statistic], groups(len(effects), len(members))
    own = float(statistic_of(effects[None, members])[0])
    others = np.concatenate([statistic_of(effects[block]) for block in np.array_split(drawn, max(1, len(drawn) // 2000))])
    whole = len(drawn) == comb(len(effects), len(members))
    as_large = int((others >= own - 1e-9).sum())
    p = as_large / len(drawn) if whole else (as_large + 1) / (len(drawn) + 1)
    return own, float(np.median(others)), p


def shared_program(effects: Floats, inclusion: Floats, members: list[int]) -> dict[str, float]:
    """The latent in which the group's squared effects are largest, how many members have their own largest effect there and with
    one sign, and the smallest inclusion probability of a member in it."""
    latent = int((effects[members] ** 2).sum(0).argmax())
    top = np.abs(effects[members]).argmax(1) == latent
    raised = int((effects[members, latent] > 0).sum())
    return {
        "latent": float(latent),
        "members_whose_top_it_is": float(top.sum()),
        "members_of_one_sign": float(max(raised, len(members) - raised)),
        "least_inclusion": float(inclusion[members, latent].min()),
    }


def rank_of_neighbour(effects: Floats, members: list[int], neighbour: int) -> int:
    """Place of a target among those outside of the group by cosine with the mean unit effect of the group; 1 is nearest."""
    unit = effects / np.maximum(np.linalg.norm(effects, axis=1, keepdims=True), 1e-12)
    near = unit @ unit[members].mean(0)
    outside = [i for i in range(len(effects)) if i not in members]
    return 1 + sum(near[i] > near[neighbour] for i in outside)
