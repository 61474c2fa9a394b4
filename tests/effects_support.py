"""Effects of a guide, at its centre or drawn."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor

from pvae_pyro.guides import AmortizedGuide


@torch.no_grad()
def effects_of(guide: AmortizedGuide, draws: int = 0) -> Tensor:
    """w (targets, latents) at the centre of the guide, or `draws` draws of it (draws, targets, latents)."""
    out = []
    for _ in range(max(draws, 1)):
        values = guide.family.sample() if draws else guide.family.centre()
        with poutine.block(), poutine.condition(data=values):
            out.append(guide.story.shared()["effects"])
    return torch.stack(out) if draws else out[0]
