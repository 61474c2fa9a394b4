"""The story behind an invertible mixing, fitted by its ELBO: which latents are behind a screen without noise to speak of.

x = intercept + T(z) W + noise with T invertible (`story.mixing`) and W the loadings. The posterior of y = T(z) given x is normal
and narrow, and does not hang on T: y is drawn from it and z = T^{-1}(y) carried to the story's own p(z_b, z_r | u). So

    ELBO per cell = E log p(z_b | u) + log p(z_r | z_b, u) + log |det dz / dy|  + (what does not depend on T or the globals),

globals at the mode of their posterior. Only z_r's law sees u. Screens of counts are not what this is for: use `fit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor, nn

from ..errors import InputError
from ..guides.point import Points
from ..guides.sites import read_sites
from ..screen import CONTROL, Screen
from ..story import Globals, PerturbedVAE, Story
from ..story.graphs.environment import with_control
from ..story.mixing import LeakyMixing, Mixing
from .cells import BalancedSampler, CellStore
from .moments import Groups, blind_axes, structure

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UnmixSettings:
    """How the ELBO is climbed: it has many local optima, so that many restarts are tried and the highest ELBO decides.

    `trials`: (runs, steps) of each round; a round goes on with the best runs of the one before. In these rounds the globals are
    maximised out in closed form, under flat priors. The last runs take `steps` more with the story's own globals and priors.
    Adam with `learning_rate` on a cosine in each round, gradients clipped at `clip`; in the last round `polish_rate` and
    `batch_size` cells a step. Every `reassign_every` steps latents may change between blocks.
    """

    trials: tuple[tuple[int, int], ...] = ((10, 1000), (2, 400))
    steps: int = 150
    batch_size: int = 1024
    learning_rate: float = 0.06
    polish_rate: float = 0.01
    clip: float = 5.0
    reassign_every: int = 100

    def __post_init__(self) -> None:
        runs = [n for n, _ in self.trials]
        if not runs or min(runs) < 1 or runs != sorted(runs, reverse=True):
            raise InputError(f"trials must be rounds of ever fewer runs, but {self.trials} was given.")


@dataclass(frozen=True, eq=False)
class Unmixed:
    """A fitted mixing and what it says. `elbo`: nats a training cell, log prior of the globals included, alignment penalty not;
    `penalty` that penalty; `tried`: ELBO of the runs of their rounds (flat priors there).
    """

    story: Story
    mixing: Mixing
    globals: Globals
    projection: Projection
    elbo: float
    penalty: float
    tried: tuple[float, ...]

    def latents(self, screen: Screen) -> tuple[Floats, Floats]:
        """Encoder means of cells: z_b (cells, background) and z_r (cells, responsive); their labels are not looked at."""
        with torch.no_grad():
            z, _ = self.mixing.unmix(self.projection(screen))
        size = self.story.model.background
        return z[:, :size].double().numpy(), z[:, size:].double().numpy()

    def graphs(self) -> Floats:
        """L of every training condition, (conditions, responsive, responsive)."""
        n, k = len(self.story.design), self.story.n_latents
        return self.globals.graph.detach().expand(n, k, k).double().numpy()


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal coordinates y of cells, unit variance each: maximum-likelihood linear part of the decoder (probabilistic PCA).

    `centre` (genes,), `loadings` (size, genes), `noise` sd of a gene, one for all; `sd` (size,) of y given x.
    """

    centre: Floats
    loadings: Floats
    noise: float
    sd: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sd", self.noise / np.linalg.norm(self.loadings, axis=1))

    @classmethod
    def of(cls, x: Floats, size: int) -> Projection:
        """From cells (cells, genes); raises InputError where they have fewer than `size` directions."""
        if min(x.shape) <= size:
            raise InputError(f"{size} latents need more cells and genes than the screen's {x.shape}; ask for fewer latents.")
        centre = x.mean(0)
        _, s, axes = np.linalg.svd(x - centre, full_matrices=False)
        rest = float((s[size:] ** 2).sum() / (len(x) * (x.shape[1] - size)))
        return cls(centre, axes[:size] * (s[:size, None] / math.sqrt(len(x))), math.sqrt(rest))

    def __call__(self, screen: Screen) -> Tensor:
        """y (cells, size)."""
        x = screen.expression.toarray().astype(np.float64) - self.centre
        return torch.as_tensor(x @ (self.loadings / (self.loadings**2).sum(1, keepdims=True)).T, dtype=torch.float32)


def unmix(
    model: PerturbedVAE,
    screen: Screen,
    mixing: LeakyMixing | None = None,
    settings: UnmixSettings | None = None,
    seed: int = 0,
    partners: NDArray[np.int64] | None = None,
) -> Unmixed:
    """Fit `model` with a mixing in place of its link to a screen on a continuous scale; `screen` has controls and singles.

    `partners` (cells,): row of the control that an alignment penalty compares a perturbed cell with; none: at random.
    Raises InputError for a model without a fixed number of responsive latents and for screens too small for it.
    """
    if model.responsive is None:
        raise InputError("unmixing needs the number of responsive latents; set responsive.")
    if CONTROL not in screen.conditions or len(screen.conditions) < 2:
        raise InputError("unmixing needs control cells and at least one perturbed condition.")
    mixing, settings = mixing or LeakyMixing(), settings or UnmixSettings()
    size = model.background + model.responsive
    projection = Projection.of(screen.expression.toarray().astype(np.float64), size)
    y = projection(screen)
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        seeds = range(1000 * seed, 1000 * seed + settings.trials[0][0])
        runs = [_Run(model, screen, y, projection, mixing, settings, one, partners) for one in seeds]
        tried: tuple[float, ...] = ()
        for number, steps in settings.trials:
            runs = runs[:number]
            for run in runs:
                run.explore(steps)
            runs.sort(key=lambda run: -run.score())
            tried += tuple(run.elbo() for run in runs)
        for run in runs:
            run.settle()
            run.climb(settings.steps)
        best = max(runs, key=lambda run: run.score())
        return Unmixed(best.story, best.mixing, best.values()[0], projection, best.elbo(), best.mean_penalty(), tried)


class _Run:
    """One restart: parameters, and steps that raise their ELBO."""

    def __init__(self, model: PerturbedVAE, screen: Screen, y: Tensor, projection: Projection, mixing: LeakyMixing,
                 settings: UnmixSettings, seed: int, partners: NDArray[np.int64] | None) -> None:  # fmt: skip
        self.model, self.settings, self.seed, self.y, self.partners = model, settings, seed, y, partners
        self.sd = torch.as_tensor(projection.sd, dtype=y.dtype)
        self.condition = torch.as_tensor(screen.condition)
        self.groups = Groups.of(self.condition)
        self.share = self.groups.count / len(y)
        assert model.responsive is not None
        self.story = Story(model, torch.as_tensor(screen.design), len(y), 1, screen.n_genes, model.responsive)
        self.story.effect_scale.fill_(2.0)  # m(u) in sds of the noise at control; a wide prior
        torch.manual_seed(seed)
        self.mixing = mixing.build(y.shape[1])
        self.mixing.turn_to(blind_axes(y, self.condition), y)
        self.mixing.standardise(self.mixing.unmix(y)[0])
        self.family = Points(read_sites(self.story.shared), 0.1)
        for name in ("gates", "edge_gates"):
            self.family.hold(name)
        store = CellStore(screen, np.arange(len(y)), "expression", torch.device("cpu"))
        self.sampler = BalancedSampler(store, cells=128, controls=256, paired=getattr(model.alignment, "paired", False))
        self.generator = np.random.default_rng(seed)
        self.free = hasattr(model.alignment, "law")
        self.settled = False

    def profile(self, z: Tensor, log_det: Tensor) -> Tensor:
        """Mean ELBO per cell of all cells with the globals at their best, flat priors, B and L of every condition's own."""
        b, constant = self.model.background, 0.5 * math.log(2 * math.pi) * z.shape[1]
        whole = self.groups.covariances(z)
        part, share = whole[:, :b, :b], self.share
        if self.free:
            background = 0.5 * b + 0.5 * (share * torch.linalg.slogdet(part)[1]).sum()
        else:
            background = 0.5 * z[:, :b].square().sum(-1).mean()
        # log |cov(z_r | z_b)| = log |cov(z)| - log |cov(z_b)|
        given = 0.5 * (share * (torch.linalg.slogdet(whole)[1] - torch.linalg.slogdet(part)[1])).sum()
        return log_det.mean() - background - given - 0.5 * self.story.n_latents - constant

    def explore(self, steps: int) -> None:
        """Climb the ELBO with the globals maximised out."""
        torch.manual_seed(self.seed)

        def loss(step: int) -> Tensor:
            if step and step % self.settings.reassign_every == 0 and not self.free:
                self.reassign()
            z, log_det = self.mixing.unmix(self.y + self.sd * torch.randn_like(self.y))
            return self.weighted_penalty(z) - self.profile(z, log_det)

        self._adam(list(self.mixing.parameters()), steps, self.settings.learning_rate, loss)

    @torch.no_grad()
    def reassign(self) -> None:
        """Exchange a background with a responsive latent while that raises the ELBO: gradients hardly cross such a swap."""
        b, size = self.model.background, self.y.shape[1]
        z, _ = self.mixing.unmix(self.y)
        sd = z.std(0)
        covariance, share = self.groups.covariances(z / sd), self.share

        def gain(block: list[int]) -> float:  # of unit-variance background latents, up to what no exchange changes
            return float((share * torch.linalg.slogdet(covariance[:, block][:, :, block])[1]).sum())

        order = list(range(size))
        best = gain(order[:b])
        while True:
            trials = []
            for i in range(b):
                for j in range(b, size):
                    other = order.copy()
                    other[i], other[j] = other[j], other[i]
                    trials.append((gain(other[:b]), other))
            top, other = max(trials)
            if top <= best + 1e-3:
                break
            best, order = top, other
        if order != list(range(size)):
            self.mixing.reorder(torch.tensor(order))
            self.mixing.standardise(self.mixing.unmix(self.y)[0])

    @torch.no_grad()
    def settle(self) -> None:
        """Put the story's globals where the cells' latents put them: structural regressions in every condition."""
        self.settled = True
        b, k, design = self.model.background, self.story.n_latents, self.story.design
        control = int(torch.nonzero((design == 0).all(-1)).flatten()[0])
        if self.free:  # a free background has no unit of its own: that of control
            own = self.mixing.unmix(self.y)[0][self.condition == control]
            self._rescale(torch.cat([own[:, :b].mean(0), torch.zeros(k)]), torch.cat([own[:, :b].std(0), torch.ones(k)]))
        total, _, noise, _ = structure(self.groups, self.mixing.unmix(self.y)[0], b)
        # control's noise is the unit of the responsive latents, and m(0) their zero
        self._rescale(torch.cat([torch.zeros(b), total[control]]), torch.cat([torch.ones(b), noise[control].sqrt()]))
        z, _ = self.mixing.unmix(self.y)
        mean, inner, noise, coupling = structure(self.groups, z, b)
        mean = ((torch.eye(inner.shape[-1]) - inner) @ mean.unsqueeze(-1)).squeeze(-1)
        solve, solve_own = torch.linalg.pinv(design), torch.linalg.pinv(with_control(design))
        place = self.family.place
        place("effects", solve @ mean)
        place("log_variance", solve @ noise.log())
        low = torch.tril_indices(inner.shape[-1], inner.shape[-1], offset=-1)
        place("own_edges", solve_own @ inner[:, low[0], low[1]])
        place("own_coupling", solve_own @ coupling.mT.flatten(1))
        if self.free:
            mean_b, inner_b, noise_b, _ = structure(self.groups, z[:, :b], 0)
            mean_b = ((torch.eye(b) - inner_b) @ mean_b.unsqueeze(-1)).squeeze(-1)
            low = torch.tril_indices(b, b, offset=-1)
            for name, value in (("mean", mean_b), ("log_variance", noise_b.log()), ("edges", inner_b[:, low[0], low[1]])):
                place(f"background_{name}", solve_own @ value)

    def _rescale(self, shift: Tensor, sd: Tensor) -> None:
        """From now on, unmixed latents are (z - shift) / sd."""
        self.mixing.centre.copy_((self.mixing.centre - shift) / sd)
        self.mixing.log_scale.sub_(sd.log())

    def values(self) -> tuple[Globals, Tensor]:
        """The story's globals at the family's centre, and their log prior."""
        trace = poutine.trace(poutine.condition(self.story.globals, data=self.family.centre())).get_trace()
        nodes: dict[str, Any] = trace.nodes
        return nodes["_RETURN"]["value"], torch.as_tensor(trace.log_prob_sum())

    def per_cell(self, g: Globals, rows: Tensor) -> Tensor:
        """ELBO of these cells but for what is constant, (rows,)."""
        y = self.y[rows] + self.sd * torch.randn(len(rows), len(self.sd))
        z, log_det = self.mixing.unmix(y)
        z_b, z_r = z.split([self.model.background, self.story.n_latents], -1)
        code = self.condition[rows]
        background = self.story.background_law(g, code).log_prob(z_b)
        return background + self.story.responsive_law(g, z_b, code).log_prob(z_r) + log_det

    def penalty(self, z: Tensor) -> Tensor:
        """Alignment penalty of one balanced draw of these cells (cells, latents), before its weight."""
        drawn = self.sampler.draw(self.generator)
        if drawn is None:
            return torch.zeros(())
        perturbed, control = drawn
        if self.partners is not None:
            control = self.partners[perturbed]
        z_b = z[:, : self.model.background]
        return self.model.alignment.penalty(z_b[torch.as_tensor(perturbed)], z_b[torch.as_tensor(control)])

    def weighted_penalty(self, z: Tensor | None = None) -> Tensor:
        """The same times its weight, at these latents or those of all cells."""
        weight = self.model.alignment.weight
        if not weight:
            return torch.zeros(())
        return weight * self.penalty(self.mixing.unmix(self.y)[0] if z is None else z)

    def climb(self, steps: int) -> None:
        """Climb the story's own ELBO, globals at the mode."""
        torch.manual_seed(self.seed)
        n = len(self.y)

        def loss(step: int) -> Tensor:
            g, prior = self.values()
            rows = torch.as_tensor(self.generator.integers(n, size=min(self.settings.batch_size, n)))
            return self.weighted_penalty() - self.per_cell(g, rows).mean() - prior / n

        parameters = [p for m in (self.mixing, self.family) for p in m.parameters() if p.requires_grad]
        self._adam(parameters, steps, self.settings.polish_rate, loss)

    def _adam(self, parameters: list[nn.Parameter], steps: int, peak: float, loss: Callable[[int], Tensor]) -> None:
        """Adam on a cosine with a warm-up; parameters that stop being finite go back to the last that were."""
        optimiser = torch.optim.Adam(parameters, betas=(0.9, 0.99))
        good = [p.detach().clone() for p in parameters]
        for step in range(steps):
            rate = peak * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / 100)
            for group in optimiser.param_groups:
                group["lr"] = rate
            value = loss(step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            size = nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            if not (math.isfinite(float(value.detach())) and math.isfinite(float(size))):
                with torch.no_grad():
                    for parameter, last in zip(parameters, good, strict=True):
                        parameter.copy_(last)
                return
            if step % 100 == 0:
                good = [p.detach().clone() for p in parameters]
            optimiser.step()

    @torch.no_grad()
    def elbo(self) -> float:
        """ELBO per training cell, with the log prior of the globals once they are settled; -inf where it is not finite."""
        if not self.settled:
            value = float(self.profile(*self.mixing.unmix(self.y)))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                g, prior = self.values()
                value = float(self.per_cell(g, torch.arange(len(self.y))).mean() + prior / len(self.y))
        return value if math.isfinite(value) else -math.inf

    @torch.no_grad()
    def mean_penalty(self) -> float:
        """Alignment penalty, mean of many draws of cells."""
        if not self.model.alignment.weight:
            return 0.0
        z, _ = self.mixing.unmix(self.y)
        return float(np.mean([float(self.penalty(z)) for _ in range(50)]))

    def score(self) -> float:
        """What runs are chosen by, and what they climb: the ELBO less the weighted penalty."""
        return self.elbo() - self.model.alignment.weight * self.mean_penalty()
