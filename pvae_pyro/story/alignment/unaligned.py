"""Neither a penalty nor the assumption that it would stand for."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor

from .. import checks
from ..graphs.causal import lower_triangle
from ..graphs.environment import with_control
from ..latents import StructuralNormal
from ..plates import Plates
from .none import NoAlignment
from .pairwise import Pairwise


class FreeBackground:
    """Takes the common law of the background out of the story: z_b of a condition is Normal(mu, S) with mu and S its own.

    `background_mean`, `background_log_variance` (1 + targets, background) ~ Normal(0, spread),
    `background_edges` (1 + targets, background (background - 1) / 2) ~ Normal(0, 1); row 0 is that of control.

    `NoAlignment` drops the penalty only, and at a KL weight of one the common p(z_b) = Normal(0, I) goes on aligning all
    conditions. Without that too, latents z_b + C z_r are as good a background as z_b: this is what alignment is for.
    """

    spread: float

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        """State the sites of the background's law."""
        rows, size = pyro.plate("backgrounds", plates.targets.size + 1, dim=-2), plates.background.size
        out = {}
        counts = {"background_mean": size, "background_log_variance": size, "background_edges": size * (size - 1) // 2}
        for name, n in counts.items():
            if n:
                spread = 1.0 if name == "background_edges" else self.spread
                with rows, pyro.plate(f"{name}_plate", n, dim=-1):
                    out[name] = pyro.sample(name, dist.Normal(like.new_zeros(plates.targets.size + 1, n), spread))
        return out

    def law(self, values: dict[str, Tensor], design: Tensor, condition: Tensor) -> StructuralNormal:
        """p(z_b | u) of cells with these condition indices (cells,)."""
        made = {name: (with_control(design) @ value)[condition] for name, value in values.items()}
        mean, scale = made["background_mean"], (0.5 * made["background_log_variance"].clamp(-8, 8)).exp()
        edges = made.get("background_edges")
        graph = mean.new_zeros(1, 1) if edges is None else lower_triangle(edges)
        return StructuralNormal(mean, graph, scale)


@dataclass(frozen=True)
class Unaligned(FreeBackground, NoAlignment):
    """Nothing says that the background is the same in every condition."""

    spread: float = 2.0

    def __post_init__(self) -> None:
        checks.positive(spread=self.spread)


@dataclass(frozen=True)
class PenaltyOnly(FreeBackground, Pairwise):
    """The paper's penalty on pairs of cells, and nothing else, says that the background is the same in every condition."""

    weight: float = 5.0
    spread: float = 2.0

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)
        checks.positive(spread=self.spread)
