"""From global draws to the expression of conditions: latent mean and measured pseudobulk, condition by condition."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guides import AmortizedGuide
from ..story.likelihoods import Moments
from .globals import GlobalDraw, Pushed

FEW_CELLS = 30  # below this the normal approximation of a pseudobulk's finite-cell noise is not used


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything needed to turn draws into predictions of the asked conditions.

    design (conditions, targets): trained targets first, then new ones; trained (conditions,): row among the training
    combinations, or -1 where the interaction is drawn from its prior; n_cells (conditions,); own_batches (conditions, batches): a
    trained condition's cells by batch, else zero; library (cells,) of training cells.
    """

    guide: AmortizedGuide
    draws: list[GlobalDraw]
    conditions: tuple[str, ...]
    design: Tensor
    trained: NDArray[np.int64]
    n_cells: NDArray[np.int64]
    own_batches: Tensor
    moments: Moments
    library: Tensor
    seed: int

    @torch.no_grad()
    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which conditions, latent mean, measured pseudobulk), each (draws, conditions of the block, genes)."""
        # the block's arrays stay below some 400 MB, whatever is asked for
        size = int(np.clip(12_000_000 // (len(self.draws) * len(self.guide.story.spread)), 1, 64))
        for start in range(0, len(self.conditions), size):
            chosen = slice(start, min(start + size, len(self.conditions)))
            yield chosen, *self._block(chosen)

    def _block(self, chosen: slice) -> tuple[Tensor, Tensor]:
        shape = (len(self.draws), chosen.stop - chosen.start, len(self.guide.story.spread))
        latent, measured = torch.empty(shape), torch.empty(shape)
        for i, row in enumerate(range(chosen.start, chosen.stop)):
            latent[:, i], measured[:, i] = self._condition(row)
        return latent, measured

    def _condition(self, row: int) -> tuple[Tensor, Tensor]:
        """Latent mean and pseudobulk (draws, genes) of one condition.

        On its own and of its own targets only: the last bits of a product depend on its number of rows, so that conditions
        computed together would move each other by them.
        """
        story, n = self.guide.story, int(self.n_cells[row])
        eta, variance, _ = self.predictor(row)
        mean, spread = self.moments(eta, variance, torch.stack([d.shared["noise"] for d in self.draws]))
        if n < FEW_CELLS:
            return mean, self._few_cells(row, n)
        # cells share programs: that part of the finite-cell noise is common to genes, the rest is not
        noise = ConditionNoise(self.conditions[row], self.seed, len(self.draws))
        low = noise.normal("programs", story.model.background)
        pushed = self.pushed(row)
        programs = torch.stack([low[i] @ p.programs for i, p in enumerate(pushed)])
        slope = story.model.likelihood.slope(eta, story.level)
        common = slope.square() * torch.stack([p.base_variance for p in pushed])
        rest = (spread - common).clamp_min(0).sqrt() * noise.normal("cells", eta.shape[1])
        return mean, mean + (slope * programs + rest) / n**0.5

    def batch_share(self, row: int) -> Tensor:
        """Batch shares (draws, batches): Bayesian bootstrap of a trained condition's own, else the draw's."""
        if float(self.own_batches[row].sum()) == 0:
            return torch.stack([d.batch_share for d in self.draws])
        generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], self.seed, "batches"))
        counts = self.own_batches[row].expand(len(self.draws), -1).contiguous()
        gamma = torch._standard_gamma(counts.clamp_min(1e-6), generator=generator)
        return gamma / gamma.sum(-1, keepdim=True)

    def predictor(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance over cells of one condition's linear predictor, (draws, genes); v(u_d), (draws, latents)."""
        shift, residual, v = self.shift(row)
        share, intercept, pushed = self.batch_share(row), self.guide.story.decoder.intercept, self.pushed(row)
        level = share @ intercept
        eta = level + torch.stack([p.base + shift[i] @ p.responsive for i, p in enumerate(pushed)]) + residual
        between = (share @ intercept.square() - level.square()).clamp_min(0)
        within = torch.stack([p.base_variance + v[i] @ p.responsive.square() for i, p in enumerate(pushed)])
        return eta, within + between, v

    def pushed(self, row: int) -> list[Pushed]:
        """What latents do to the predictor under this condition's graph, for every draw."""
        return [d.push(self.guide.story, self.design[row : row + 1]) for d in self.draws]

    def shift(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """m_d with its interaction (draws, latents), residual r_d (draws, genes) and v(u_d) (draws, latents)."""
        story = self.guide.story
        part, present = story.model.interaction, torch.nonzero(self.design[row]).flatten()
        design = self.design[row, present].unsqueeze(0)

        def of_draw(shared: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            width = part.latent_width(shared["kappa"], story.effect_scale, design, shared["effects"])
            v = story.noise_variance(shared["log_variance"], design)
            return story.compose(shared, design)[0], width[0], v[0]

        own = {name: self._stacked[name][:, present] for name in ("effects", "log_variance")}
        shift, width, v = torch.func.vmap(of_draw)(self._stacked | own)
        known = int(self.trained[row])
        if known >= 0:
            shift = torch.stack([d.trained_shift[known] for d in self.draws])
            return shift, torch.stack([d.trained_residual[known] for d in self.draws]), v
        if len(present) < 2:
            return shift, torch.zeros_like(story.spread), v
        noise = ConditionNoise(self.conditions[row], self.seed, len(self.draws))
        surprise = (part.surprise_spread * noise.normal("surprise", 1)).exp()
        residual = surprise * part.outside * story.spread * noise.normal("residual", len(story.spread))
        return shift + surprise * width * noise.normal("interaction", story.n_latents), residual, v

    @cached_property
    def _stacked(self) -> dict[str, Any]:
        """The small shared values of all draws, draws first."""
        shared = [d.shared for d in self.draws]
        out: dict[str, Any] = {n: torch.stack([s[n] for s in shared]) for n in ("effects", "log_variance", "kappa")}
        out["composition"] = {n: torch.stack([s["composition"][n] for s in shared]) for n in shared[0]["composition"]}
        return out

    def cells(self, row: int, draw_numbers: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """New cells of one condition on the log scale, one for each entry of `draw_numbers`, shape (cells, genes)."""
        story, intercept = self.guide.story, self.guide.story.decoder.intercept
        share, (mean, _, v) = self.batch_share(row), self.predictor(row)
        out = torch.empty(len(draw_numbers), len(story.spread))
        for number in np.unique(draw_numbers):
            draw, rows = self.draws[number], np.flatnonzero(draw_numbers == number)
            n = len(rows)
            pushed = draw.push(story, self.design[row : row + 1])
            z = torch.randn(n, len(pushed.programs), generator=generator)
            e = v[number].sqrt() * torch.randn(n, story.n_latents, generator=generator)
            batch = torch.multinomial(share[number], n, replacement=True, generator=generator)
            moved = intercept[batch] - share[number] @ intercept
            library = self.library[torch.randint(len(self.library), (n,), generator=generator)]
            eta = mean[number] + moved + z @ pushed.programs + e @ pushed.responsive
            out[rows] = story.model.likelihood.simulate(
                eta, draw.shared["noise"], library, story.level, generator
            )
        return out

    def _few_cells(self, row: int, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(
            condition_seed(self.conditions[row], self.seed, "few cells")
        )
        numbers = np.repeat(np.arange(len(self.draws)), n)
        return self.cells(row, numbers, generator).reshape(len(self.draws), n, -1).mean(1)


class ConditionNoise:
    """Standard normal noise of one condition, the same whatever else is asked for and in whatever order."""

    def __init__(self, condition: str, seed: int, draws: int) -> None:
        self.condition, self.seed, self.draws = condition, seed, draws

    def normal(self, purpose: str, n: int) -> Tensor:
        """Shape (draws, n)."""
        generator = torch.Generator().manual_seed(condition_seed(self.condition, self.seed, purpose))
        return torch.randn(self.draws, n, generator=generator)


def condition_seed(condition: str, seed: int, purpose: str) -> int:
    """A seed for one condition and purpose, stable across machines and sessions."""
    words = [seed, zlib.crc32(condition.encode()), zlib.crc32(purpose.encode())]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
