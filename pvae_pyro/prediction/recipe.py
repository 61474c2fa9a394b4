"""From global draws to the expression of conditions: latent mean and measured pseudobulk, condition by condition."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
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
        names, design = self.conditions[chosen], self.design[chosen]
        noise = [ConditionNoise(name, self.seed, len(self.draws)) for name in names]
        story = self.guide.story
        n_genes, k = len(story.spread), story.n_latents
        combined = (design != 0).sum(-1) >= 2
        eps_eta = torch.stack([n.normal("interaction", k) for n in noise], 1)  # (draws, conditions, latents)
        eps_r = torch.stack([n.normal("residual", n_genes) for n in noise], 1)
        eps_s = torch.stack([n.normal("surprise", 1) for n in noise], 1)
        eps_low = torch.stack([n.normal("programs", story.model.background) for n in noise], 1)
        eps_cell = torch.stack([n.normal("cells", n_genes) for n in noise], 1)
        share = self.batch_share(chosen)
        n_cells = torch.as_tensor(self.n_cells[chosen], dtype=design.dtype).unsqueeze(-1)
        trained = torch.as_tensor(self.trained[chosen])
        latent = torch.empty(len(self.draws), len(names), n_genes)
        measured = torch.empty_like(latent)
        for i, draw in enumerate(self.draws):
            eta, variance = self.predictor(draw, share[i], design, combined, trained, eps_eta[i], eps_r[i], eps_s[i])
            mean, spread = self.moments(eta, variance, draw.shared["noise"])
            latent[i] = mean
            # cells share programs: that part of the finite-cell noise is common to genes, the rest is not
            slope = story.model.likelihood.slope(eta, story.level)
            root = torch.linalg.cholesky(draw.z_covariance + 1e-6 * torch.eye(len(draw.z_covariance)))
            shared = slope * ((eps_low[i] @ root.T) @ draw.background)
            shared_variance = slope.square() * ((draw.z_covariance @ draw.background) * draw.background).sum(0)
            rest = (spread - shared_variance).clamp_min(0).sqrt()
            measured[i] = mean + (shared + rest * eps_cell[i]) / n_cells.sqrt()
        for j in np.flatnonzero(self.n_cells[chosen] < FEW_CELLS):
            measured[:, j] = self._few_cells(chosen.start + int(j), int(self.n_cells[chosen][j]))
        return latent, measured

    def batch_share(self, chosen: slice) -> Tensor:
        """Shares of the batches (draws, conditions, batches): Bayesian bootstrap of a trained condition's own, else the draw's."""
        common = torch.stack([d.batch_share for d in self.draws])
        out = common.unsqueeze(1).repeat(1, chosen.stop - chosen.start, 1)
        for j, row in enumerate(range(chosen.start, chosen.stop)):
            if float(self.own_batches[row].sum()) > 0:
                generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], self.seed, "batches"))
                counts = self.own_batches[row].expand(len(self.draws), -1).contiguous()
                gamma = torch._standard_gamma(counts.clamp_min(1e-6), generator=generator)
                out[:, j] = gamma / gamma.sum(-1, keepdim=True)
        return out

    def predictor(
        self, draw: GlobalDraw, share: Tensor, design: Tensor, combined: Tensor, trained: Tensor, eps_eta: Tensor,
        eps_r: Tensor, eps_s: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Mean and variance over cells of the linear predictor, each (conditions, genes); `share` (conditions, batches)."""
        shift, residual = self.shift(draw, design, combined, trained, eps_eta, eps_r, eps_s)
        intercept = self.guide.story.decoder.intercept
        level = share @ intercept
        between = (share @ intercept.square() - level.square()).clamp_min(0)
        eta = level + draw.base + shift @ draw.responsive + residual
        v = self.guide.story.noise_variance(draw.shared["log_variance"], design)
        return eta, draw.base_variance + between + v @ draw.responsive.square()

    def shift(
        self, draw: GlobalDraw, design: Tensor, combined: Tensor, trained: Tensor, eps_eta: Tensor, eps_r: Tensor, eps_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """m_d with its interaction (conditions, latents) and the residual r_d (conditions, genes)."""
        story = self.guide.story
        part, shared = story.model.interaction, draw.shared
        shift = story.compose(shared, design)
        surprise = (part.surprise_spread * eps_s).exp()
        width = part.latent_width(shared["kappa"], story.effect_scale, design, shared["effects"])
        fresh = shift + surprise * width * eps_eta
        r = surprise * part.outside * story.spread * eps_r
        known = trained >= 0
        if bool(known.any()):
            rows = trained.clamp_min(0)
            fresh = torch.where(known.unsqueeze(-1), draw.trained_shift[rows], fresh)
            r = torch.where(known.unsqueeze(-1), draw.trained_residual[rows], r)
        single = ~combined.unsqueeze(-1)
        return torch.where(single, shift, fresh), torch.where(single, torch.zeros_like(r), r)

    def cells(self, row: int, draw_numbers: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """New cells of one condition on the log scale, one for each entry of `draw_numbers`, shape (cells, genes)."""
        story, design = self.guide.story, self.design[row : row + 1]
        noise = ConditionNoise(self.conditions[row], self.seed, len(self.draws))
        eps = [noise.normal(p, n) for p, n in (("interaction", story.n_latents), ("residual", len(story.spread)), ("surprise", 1))]
        combined, trained = (design != 0).sum(-1) >= 2, torch.as_tensor(self.trained[row : row + 1])
        share = self.batch_share(slice(row, row + 1))
        out = torch.empty(len(draw_numbers), len(story.spread))
        for number in np.unique(draw_numbers):
            draw, rows = self.draws[number], np.flatnonzero(draw_numbers == number)
            eta, _ = self.predictor(draw, share[number], design, combined, trained, *(e[number : number + 1] for e in eps))
            n = len(rows)
            root = torch.linalg.cholesky(draw.z_covariance + 1e-6 * torch.eye(len(draw.z_covariance)))
            z = torch.randn(n, len(root), generator=generator) @ root.T
            v = story.noise_variance(draw.shared["log_variance"], design).sqrt()
            e = v * torch.randn(n, story.n_latents, generator=generator)
            intercept = story.decoder.intercept
            batch = torch.multinomial(share[number, 0], n, replacement=True, generator=generator)
            moved = intercept[batch] - share[number] @ intercept
            library = self.library[torch.randint(len(self.library), (n,), generator=generator)]
            eta = eta + moved + z @ draw.background + e @ draw.responsive
            out[rows] = story.model.likelihood.simulate(eta, draw.shared["noise"], library, story.level, generator)
        return out

    def _few_cells(self, row: int, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], self.seed, "few cells"))
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
