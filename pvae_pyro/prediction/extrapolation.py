"""How far a request is from what was trained, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ..inference.diagnosis import Finding, graded
from ..labels import listing
from .mixture import RecipeMixture
from .recipe import Recipe

if TYPE_CHECKING:
    from .posterior import Posterior

FAR, TOO_FAR = 1.5, 2.5  # shift over the longest trained one


def distances(posterior: Posterior) -> pd.DataFrame:
    """One row for each asked condition: condition, n_targets, seen_targets, most_targets (of a trained condition), trained,
    shift (length of the mean latent shift, control-cell sds), relative (over the longest shift of a trained condition).

    Of an ensemble the latents of the first member are used; a longer shift than any trained one leaves the range in which
    composition and decoder were learnt.
    """
    recipe = posterior.recipe.parts[0] if isinstance(posterior.recipe, RecipeMixture) else posterior.recipe
    story = recipe.guide.story
    with torch.no_grad():
        asked = torch.stack([_length(recipe, recipe.shift(row)[0]) for row in range(len(recipe.conditions))])
        design, n = story.design, recipe.design.shape[1]
        padded = torch.cat([design, design.new_zeros(len(design), n - design.shape[1])], 1)
        composed = torch.stack([story.compose(d.shared, padded) for d in recipe.draws])
        if story.combinations:
            composed[:, story.combinations] = torch.stack([d.trained_shift for d in recipe.draws])
        longest = torch.stack([_length(recipe, composed[:, row]) for row in range(len(design))]).max()
    return pd.DataFrame({
        "condition": posterior.conditions,
        "n_targets": posterior.n_targets,
        "seen_targets": posterior.seen_targets,
        "most_targets": int((design != 0).sum(1).max()),
        "trained": [bool((padded == one).all(1).any()) for one in recipe.design],
        "shift": asked.numpy(),
        "relative": (asked / longest.clamp_min(1e-9)).numpy(),
    })  # fmt: skip


def diagnose(posterior: Posterior) -> tuple[Finding, ...]:
    """Findings about the request: targets never trained, more targets than in any trained condition, shifts beyond them."""
    table = distances(posterior)
    found = []
    unseen = table.loc[table["seen_targets"] < table["n_targets"], "condition"].tolist()
    if len(unseen):
        found.append(Finding(
            "untrained targets", "do not trust",
            f"{len(unseen)} of {len(table)} asked conditions hold a target that no cell was trained on ({listing(unseen, 3)}): "
            "its effect is drawn from the prior, which points nowhere and is smaller than measured effects.",
            "Use neither its mean nor its intervals, which are too narrow; measure the target alone first.",
        ))  # fmt: skip
    more = table.loc[table["n_targets"] > np.maximum(table["most_targets"], 2), "condition"].tolist()
    if len(more):
        found.append(Finding(
            "more targets than trained", "look",
            f"{len(more)} of {len(table)} asked conditions have more targets than any trained condition "
            f"({listing(more, 3)}): how effects combine beyond that is extrapolated.",
            "Measure a few of them, and look at their coverage before relying on the rest.",
        ))  # fmt: skip
    far = int(table["relative"].argmax())
    name, ratio = posterior.conditions[far], float(table["relative"].iloc[far])
    level = graded(ratio, FAR, TOO_FAR)
    found.append(Finding(
        "distance from training", level,
        f"the longest predicted shift ({name}) is {ratio:.1f} times the longest of a trained condition.",
        "" if level == "fine" else "Nothing was checked that far from control: expect saturation that the model does not know.",
    ))  # fmt: skip
    return tuple(found)


def _length(recipe: Recipe, shift: torch.Tensor) -> torch.Tensor:
    """Of the mean over draws of shifts (draws, latents), in control-cell sds."""
    return (recipe.guide.story.unit * shift.mean(0)).norm()
