"""Edges of the latent graph as a table, and whether restarts agree on them (design 3.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..guides import AmortizedGuide
from ..story import Story
from .matching import match_latents

if TYPE_CHECKING:
    from .fitting import Fit

NOT_IDENTIFIED, AGREED = "not identified", "restarts agree"


def edges_table(guide: AmortizedGuide, shared: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """See `Fit.edges_table`; `shared`: the story's shared values, draw by draw."""
    story = guide.story
    source, target = _possible(story)
    control = torch.zeros_like(story.design[:1])
    graphs = [story.edges(dict(one), control)["graph"].reshape(story.n_latents, story.n_latents) for one in shared]
    drawn = torch.stack(graphs).numpy()[:, target, source]
    probability = (drawn != 0).mean(0)
    if "edge_gates" in guide.family.logits:
        gates = torch.sigmoid(guide.family.logits["edge_gates"]).detach().numpy()
        probability = gates[target * (target - 1) // 2 + source]  # gates stand row by row
    values = {"source": source, "target": target, "probability": probability, "mean": drawn.mean(0), "sd": drawn.std(0)}
    return pd.DataFrame(values).assign(identified=False, note=NOT_IDENTIFIED)


def _possible(story: Story) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sources and targets of all edges that the latent order allows."""
    n = story.n_latents
    place = np.arange(n) if story.order is None else story.order.argsort().numpy()
    target, source = np.nonzero(place[:, None] > place[None, :])
    return source, target


def agreeing_edges(
    fits: Fit | Sequence[Fit], draws: int = 200, seed: int = 0, least: float = 0.9, closeness: float = 0.7
) -> pd.DataFrame:
    """Edges of the first fit, and which of them the other fits have, too; members of ensembles count one by one.

    Latents of another fit are matched to those of the first by the cosine of their loadings (Hungarian assignment on its
    absolute value; its sign turns the latent). Columns: source and target as the first fit numbers them; probability and mean
    (over fits) and sd (of all draws of all fits) of the edge; match, the smallest |cosine| by which either latent was
    found again; fits, the number of fits with the edge at a probability above `least`; identified: all fits have it with the
    same sign and a match of at least `closeness`.

    Restarts can only refute. They begin at one closed-form start, and every fit orders latents by size, so that they share their
    choice of axes and of direction: agreement is needed for an edge to mean something, it is no proof that it does. Fits of
    resampled cells (`Ensemble(resample=True)`) move the start, too, and ask more of an edge than seeds do.
    Raises InputError for fewer than two fits, or fits of other genes.
    """
    flat = [member for fit in (fits if isinstance(fits, Sequence) else [fits]) for member in fit.members]
    if len(flat) < 2:
        raise InputError(
            f"whether restarts agree takes at least two fits, but {len(flat)} was given; fit again with other seeds."
        )
    first = flat[0]
    out = first.edges_table(draws, seed)
    pairs = list(zip(out["source"], out["target"], strict=True))
    found, matches = [], []
    for fit in flat:
        matched = match_latents(first, fit)
        partner, sign = matched.partner, matched.sign
        table = fit.edges_table(draws, seed).set_index(["source", "target"])
        rows = [(partner[s], partner[t]) for s, t in pairs]
        # what the other fit cannot have, for want of the latent or because its order runs the other way, is an absent edge
        own = table[["probability", "mean", "sd"]].reindex(pd.MultiIndex.from_tuples(rows)).fillna(0.0).to_numpy()
        own[:, 1] *= [sign[s] * sign[t] for s, t in pairs]
        found.append(own)
        matches.append([min(matched.cosine[s], matched.cosine[t]) for s, t in pairs])
    probability, mean, sd = np.moveaxis(np.array(found), 2, 0)
    nearest, present = np.min(matches, axis=0), probability > least
    one_sign = (mean > 0).all(0) | (mean < 0).all(0)
    identified = present.all(0) & one_sign & (nearest >= closeness)
    return out.assign(
        probability=probability.mean(0),
        mean=mean.mean(0),
        sd=np.sqrt((sd**2).mean(0) + mean.var(0)),
        match=nearest,
        fits=present.sum(0),
        identified=identified,
        note=np.where(identified, AGREED, NOT_IDENTIFIED),
    )
