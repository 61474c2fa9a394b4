"""What compositions share: which rows of a design combine targets, and scales that may be fixed."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
from torch import Tensor


def is_combination(design: Tensor) -> Tensor:
    """True for the rows of a design with two or more targets, shape (conditions,)."""
    return (design != 0).sum(-1) >= 2


def log_normal(name: str, centre: float, spread: float, like: Tensor) -> Tensor:
    """The site `name` ~ LogNormal(log centre, spread), or the constant `centre` where spread is 0 or centre has no end."""
    if spread == 0 or centre == math.inf:
        return like.new_tensor(centre)
    return pyro.sample(name, dist.LogNormal(like.new_tensor(math.log(centre)), spread))
