"""From global draws to the expression of conditions: latent mean and measured pseudobulk, condition by condition."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guides import AmortizedGuide
from ..story.likelihoods import Moments
from .globals import GlobalDraw

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
        story, likelihood = self.guide.story, self.guide.story.model.likelihood
        noise = ConditionNoise(self.conditions[row], self.seed, len(self.draws))
        low, share = noise.normal("programs", story.model.background), self.batch_share(row)
        eps = [noise.normal(p, n) for p, n in self._purposes()]
        shape = (len(self.draws), len(story.spread))
        eta, variance, programs = (torch.empty(shape) for _ in range(3))
        for i, draw in enumerate(self.draws):
            eta[i], variance[i] = self.predictor(draw, row, share[i], [e[i] for e in eps])
            programs[i] = low[i] @ draw.programs
        mean, spread = self.moments(eta, variance, torch.stack([d.shared["noise"] for d in self.draws]))
        n = int(self.n_cells[row])
        if n < FEW_CELLS:
            return mean, self._few_cells(row, n)
        # cells share programs: that part of the finite-cell noise is common to genes, the rest is not
        slope = likelihood.slope(eta, story.level)
        common = slope.square() * torch.stack([d.base_variance for d in self.draws])
        rest = (spread - common).clamp_min(0).sqrt()
        return mean, mean + (slope * programs + rest * noise.normal("cells", shape[1])) / n**0.5

    def _purposes(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the noise of one condition that `shift` needs."""
        story = self.guide.story
        return ("interaction", story.n_latents), ("residual", len(story.spread)), ("surprise", 1)

    def batch_share(self, row: int) -> Tensor:
        """Batch shares (draws, batches): Bayesian bootstrap of a trained condition's own, else the draw's."""
        if float(self.own_batches[row].sum()) == 0:
            return torch.stack([d.batch_share for d in self.draws])
        generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], self.seed, "batches"))
        counts = self.own_batches[row].expand(len(self.draws), -1).contiguous()
        gamma = torch._standard_gamma(counts.clamp_min(1e-6), generator=generator)
        return gamma / gamma.sum(-1, keepdim=True)

    def predictor(self, draw: GlobalDraw, row: int, share: Tensor, eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance over cells of one condition's linear predictor, each (genes,); `share` (batches,)."""
        shift, residual, v = self.shift(draw, row, eps)
        intercept = self.guide.story.decoder.intercept
        level = share @ intercept
        between = (share @ intercept.square() - level.square()).clamp_min(0)
        eta = level + draw.base + shift @ draw.responsive + residual
        return eta, draw.base_variance + between + v @ draw.responsive.square()

    def shift(self, draw: GlobalDraw, row: int, eps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """m_d with its interaction (latents,), the residual r_d (genes,) and the noise variance v(u_d) (latents,)."""
        story = self.guide.story
        part, present = story.model.interaction, torch.nonzero(self.design[row]).flatten()
        design = self.design[row, present].unsqueeze(0)
        shared = draw.shared | {name: draw.shared[name][present] for name in ("effects", "log_variance")}
        v = story.noise_variance(shared["log_variance"], design)[0]
        shift, residual = story.compose(shared, design)[0], torch.zeros_like(story.spread)
        if self.trained[row] >= 0:
            shift, residual = draw.trained_shift[self.trained[row]], draw.trained_residual[self.trained[row]]
        elif len(present) >= 2:
            surprise = (part.surprise_spread * eps[2]).exp()
            width = part.latent_width(shared["kappa"], story.effect_scale, design, shared["effects"])[0]
            shift = shift + surprise * width * eps[0]
            residual = surprise * part.outside * story.spread * eps[1]
        return shift, residual, v

    def cells(self, row: int, draw_numbers: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """New cells of one condition on the log scale, one for each entry of `draw_numbers`, shape (cells, genes)."""
        story = self.guide.story
        noise = ConditionNoise(self.conditions[row], self.seed, len(self.draws))
        eps, share = [noise.normal(p, n) for p, n in self._purposes()], self.batch_share(row)
        intercept, out = story.decoder.intercept, torch.empty(len(draw_numbers), len(story.spread))
        for number in np.unique(draw_numbers):
            draw, rows = self.draws[number], np.flatnonzero(draw_numbers == number)
            own = [e[number] for e in eps]
            eta, _ = self.predictor(draw, row, share[number], own)
            n = len(rows)
            z = torch.randn(n, len(draw.programs), generator=generator)
            e = self.shift(draw, row, own)[2].sqrt() * torch.randn(n, story.n_latents, generator=generator)
            batch = torch.multinomial(share[number], n, replacement=True, generator=generator)
            moved = intercept[batch] - share[number] @ intercept
            library = self.library[torch.randint(len(self.library), (n,), generator=generator)]
            eta = eta + moved + z @ draw.programs + e @ draw.responsive
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
