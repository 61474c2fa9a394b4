"""From global draws to the expression of conditions: latent mean and measured pseudobulk, condition by condition."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guides import AmortizedGuide
from ..story.likelihoods import Moments
from .globals import GlobalDraw, Pushed, graph_varies, push_draws

FEW_CELLS = 30  # below this the normal approximation of a pseudobulk's finite-cell noise is not used


@dataclass(frozen=True, eq=False)
class Kind:
    """Cells of one condition that are alike: those that respond, or those that escaped.

    rate (draws, 1) share of the condition's cells; eta and variance (draws, genes) of their predictor; v(u) (draws, latents);
    `purpose` marks the random numbers that are theirs alone.
    """

    purpose: str
    rate: Tensor
    pushed: Pushed
    eta: Tensor
    variance: Tensor
    v: Tensor


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything needed to turn draws into predictions of the asked conditions.

    design (conditions, targets): trained targets first, then new ones; trained (conditions,): row among the training
    combinations, or -1 where the interaction is drawn from its prior; n_cells (conditions,); own_batches (conditions, batches): a
    trained condition's cells by batch, else zero; library (cells,) of training cells; escape: False as if every cell responded.
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
    escape: bool = True

    def asking(self, **rows: Any) -> Recipe:
        """The same draws for other conditions: new values of fields that have one entry for each, or of `escape`."""
        return replace(self, **rows)

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which conditions, latent mean, measured pseudobulk), each (draws, conditions of the block, genes)."""
        return in_blocks(self.block, len(self.conditions), len(self.draws), len(self.guide.story.spread))

    @torch.no_grad()
    def block(self, chosen: slice) -> tuple[Tensor, Tensor]:
        """Latent mean and measured pseudobulk of some conditions, each (draws, conditions, genes)."""
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
        n, kinds = int(self.n_cells[row]), self.kinds(row)
        moments = self._moments(kinds)
        latent = _mixed(kinds, [mean for mean, _ in moments])
        if n < FEW_CELLS:
            return latent, self._few_cells(row, n)
        measured = torch.zeros_like(latent)
        for kind, share, (mean, spread) in zip(kinds, self._counted(row, kinds, n), moments, strict=True):
            # the mean of the n * share cells of this kind, in its part of the whole
            measured = measured + (share * mean + share.sqrt() * self._cell_noise(row, kind, spread) / n**0.5)
        return latent, measured

    @torch.no_grad()
    def cell_moments(self, row: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of one more cell of a condition given each draw, (draws, genes); the mean is the latent mean."""
        kinds = self.kinds(row)
        moments = self._moments(kinds)
        mean = _mixed(kinds, [m for m, _ in moments])
        return mean, _mixed(kinds, [v + (m - mean).square() for m, v in moments])

    def _moments(self, kinds: list[Kind]) -> list[tuple[Tensor, Tensor]]:
        noise = torch.stack([d.shared["noise"] for d in self.draws])
        return [self.moments(kind.eta, kind.variance, noise) for kind in kinds]

    def _cell_noise(self, row: int, kind: Kind, spread: Tensor) -> Tensor:
        """Noise of one cell, (draws, genes): cells share programs, so that this part is common to genes, the rest is not."""
        story = self.guide.story
        noise = ConditionNoise(self.conditions[row], self.seed, len(self.draws))
        programs = kind.pushed.common(noise.normal("programs" + kind.purpose, story.model.background))
        slope = story.model.likelihood.slope(kind.eta, story.level)
        own = torch.addcmul(spread, slope.square(), kind.pushed.base_variance, value=-1).clamp_min_(0).sqrt_()
        return programs.mul_(slope).addcmul_(own, noise.normal("cells" + kind.purpose, spread.shape[1]))

    def _counted(self, row: int, kinds: list[Kind], n: int) -> list[Tensor]:
        """Shares of the kinds among n cells, each (draws, 1): how many respond is common to all genes."""
        if len(kinds) == 1:
            return [kinds[0].rate]
        generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], self.seed, "responding"))
        rate = kinds[0].rate.double()
        share = (torch.binomial(torch.full_like(rate, n), rate, generator=generator) / n).to(kinds[0].rate)
        return [share, 1 - share]

    def kinds(self, row: int) -> list[Kind]:
        """The cells of a condition that respond, and those that escaped where any do."""
        story, pushed, rate = self.guide.story, self.pushed(row), self.rate(row)
        kinds = [Kind("", rate, pushed, *self.predictor(row, pushed))]
        if bool((rate < 1).any()):
            control = self._fixed or push_draws(story, self.draws, torch.zeros_like(self.design[row : row + 1]))
            kinds.append(Kind(" escaped", 1 - rate, control, *self.predictor(row, control, responds=False)))
        return kinds

    def rate(self, row: int) -> Tensor:
        """Share of a condition's cells that respond, (draws, 1)."""
        part, present = self.guide.story.model.penetrance, torch.nonzero(self.design[row]).flatten()
        design = self.design[row, present].unsqueeze(0)
        if not self.escape:
            return design.new_ones(len(self.draws), 1)
        return torch.stack([part.rate(d.shared["penetrance"][present], design) for d in self.draws])

    def batch_share(self, row: int) -> Tensor:
        """Batch shares (draws, batches): Bayesian bootstrap of a trained condition's own, else the draw's."""
        if float(self.own_batches[row].sum()) == 0:
            return torch.stack([d.batch_share for d in self.draws])
        generator = torch.Generator().manual_seed(condition_seed(self.conditions[row], self.seed, "batches"))
        counts = self.own_batches[row].expand(len(self.draws), -1).contiguous()
        gamma = torch._standard_gamma(counts.clamp_min(1e-6), generator=generator)
        return gamma / gamma.sum(-1, keepdim=True)

    def predictor(
        self, row: int, pushed: Pushed | None = None, responds: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance over cells of one condition's linear predictor, (draws, genes); v(u_d), (draws, latents).

        Of its cells that respond, or of those that escaped: control cells with the condition's batches and residual.
        """
        shift, residual, v = self.shift(row)
        if not responds:
            shift, v = torch.zeros_like(shift), torch.ones_like(v)
        share, intercept, pushed = self.batch_share(row), self.guide.story.decoder.intercept, pushed or self.pushed(row)
        level = share @ intercept
        eta = level + pushed.base + pushed.shifted(shift) + residual
        between = (share @ intercept.square() - level.square()).clamp_min(0)
        return eta, pushed.base_variance + pushed.spread(v) + between, v

    def pushed(self, row: int) -> Pushed:
        """What latents do to the predictor under this condition's graph, in every draw."""
        return self._fixed or push_draws(self.guide.story, self.draws, self.design[row : row + 1])

    @cached_property
    def _fixed(self) -> Pushed | None:
        """The same for all conditions, where the graph does not depend on them."""
        story, one = self.guide.story, self.design[:1]
        return None if graph_varies(story, self.draws, one) else push_draws(story, self.draws, one)

    def shift(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """m_d with its interaction (draws, latents), residual rho_d r_d (draws, genes) and v(u_d) (draws, latents)."""
        story = self.guide.story
        part, present = story.model.interaction, torch.nonzero(self.design[row]).flatten()
        design = self.design[row, present].unsqueeze(0)

        def of_draw(shared: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            width = part.latent_width(shared["kappa"], story.typical, design, shared["effects"])
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
        residual = surprise * part.outside * story.spread * noise.normal("residual", len(story.spread)) * self.rate(row)
        stretched = shift * (1 + part.stretch * story.stretch_unit * noise.normal("stretch", 1))
        return stretched + surprise * width * noise.normal("interaction", story.n_latents), residual, v

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
        share, kinds = self.batch_share(row), self.kinds(row)
        out = torch.empty(len(draw_numbers), len(story.spread))
        for number in np.unique(draw_numbers):
            draw = self.draws[number]
            for kind, rows in _by_kind(kinds, number, np.flatnonzero(draw_numbers == number), generator):
                n = len(rows)
                z = torch.randn(n, story.model.background, generator=generator)
                e = kind.v[number].sqrt() * torch.randn(n, story.n_latents, generator=generator)
                batch = torch.multinomial(share[number], n, replacement=True, generator=generator)
                moved = intercept[batch] - share[number] @ intercept
                library = self.library[torch.randint(len(self.library), (n,), generator=generator)]
                latents = z @ kind.pushed.mix[number]
                latents[:, story.model.background :] += e @ kind.pushed.carry[number]
                eta = kind.eta[number] + moved + kind.pushed.cells(latents, number)
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


def _mixed(kinds: list[Kind], values: list[Tensor]) -> Tensor:
    """Average (draws, genes) over the kinds of cells, at their rates."""
    return torch.stack([kind.rate * value for kind, value in zip(kinds, values, strict=True)]).sum(0)


def in_blocks(
    block: Callable[[slice], tuple[Tensor, Tensor]], conditions: int, draws: int, genes: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """`block` of all conditions, some at a time, so that its arrays stay below some 400 MB, whatever is asked for."""
    size = int(np.clip(12_000_000 // (draws * genes), 1, 64))
    for start in range(0, conditions, size):
        chosen = slice(start, min(start + size, conditions))
        yield chosen, *block(chosen)


def _by_kind(
    kinds: list[Kind], number: int, rows: NDArray[np.int64], generator: torch.Generator
) -> Iterator[tuple[Kind, NDArray[np.int64]]]:
    """Rows of new cells of one draw by kind, drawn at their rates; a kind without a cell is left out."""
    if len(kinds) == 1:
        yield kinds[0], rows
        return
    responds = (torch.rand(len(rows), generator=generator) < kinds[0].rate[number]).numpy()
    for kind, chosen in zip(kinds, (rows[responds], rows[~responds]), strict=True):
        if len(chosen):
            yield kind, chosen


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
