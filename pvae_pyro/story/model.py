"""The generative story: PerturbedVAE as one Pyro program (design 2; paper Eqs. 1, 6-9, 59)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import InputError
from . import checks
from .alignment import Alignment, Centroid
from .composition import Bilinear, Composition, Interaction, is_combination
from .effects import Effects, SpikeSlab
from .graphs import CausalGraph, Graph
from .latents import StructuralNormal, propagate
from .likelihoods import Gaussian, Likelihood
from .loadings import GeneSets, UncertainLoadings
from .networks import Decoder
from .penetrance import Full, Penetrance
from .plates import Plates

if TYPE_CHECKING:
    from ..prediction import PriorSummary, ScreenPlan, SimulatedCells
    from ..screen import Screen


@dataclass(frozen=True)
class PerturbedVAE:
    """What the story is made of; every part can be swapped, e.g. `model.replace(effects=NormalEffects())`.

    `responsive`: number of responsive latents; None lets the warm start pick the rank (30 without one).
    `background`: number of background latents. `hidden`: width of the encoder's correction networks (0: linear encoders).
    `variance_spread`: prior sd of nu, of what a target does to log v, the noise variance of a latent; 0 keeps v(u) = 1.
    `variance_limit`: bound of |log v|. `coupling`: prior sd of B, background -> responsive; 0 leaves B out.
    `loadings`: None, or `GeneSets`, which keeps each responsive latent to the genes of a set (and says how many there are), or
    `UncertainLoadings`, which draws them as far as they are not known.
    """

    effects: Effects = field(default_factory=SpikeSlab)
    graph: Graph = field(default_factory=CausalGraph)
    composition: Composition = field(default_factory=Bilinear)
    interaction: Interaction = field(default_factory=Interaction)
    alignment: Alignment = field(default_factory=Centroid)
    penetrance: Penetrance = field(default_factory=Full)
    likelihood: Likelihood = field(default_factory=Gaussian)
    responsive: int | None = None
    background: int = 20
    hidden: int = 64
    variance_spread: float = 0.1
    variance_limit: float = 2.0
    coupling: float = 0.1
    loadings: GeneSets | UncertainLoadings | None = None

    def __post_init__(self) -> None:
        sizes = {"responsive": self.responsive, "background": self.background, "hidden": self.hidden}
        for name, low in (("responsive", 1), ("background", 1), ("hidden", 0)):
            value = sizes[name]
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise InputError(f"{name} must be a whole number of at least {low}, but {value!r} was given.")
        checks.positive(variance_limit=self.variance_limit)
        checks.not_negative(variance_spread=self.variance_spread, coupling=self.coupling)
        if isinstance(self.loadings, GeneSets) and self.responsive not in (None, len(self.loadings.sets)):
            raise InputError(
                f"{len(self.loadings.sets)} gene sets make as many responsive latents, but responsive is {self.responsive}; "
                "leave it out."
            )

    def replace(self, **parts: Any) -> PerturbedVAE:
        """The same model with some parts swapped; an unknown name is a TypeError."""
        return replace(self, **parts)

    def simulate(self, screen_like: Screen | ScreenPlan, seed: int = 0, start: bool = True) -> SimulatedCells:
        """Cells that this prior expects for the conditions, batches and library sizes of a screen, and the truth behind them.

        See `prediction.prior.simulate` for what is drawn and what the prior is conditional on.
        """
        from ..prediction.prior import simulate

        return simulate(self, screen_like, seed, start)

    def prior_summary(
        self, screen_like: Screen | ScreenPlan, draws: int = 200, seed: int = 0, start: bool = True
    ) -> PriorSummary:
        """What this prior expects of perturbations, beside what was measured; `print` it or `.plot(path)` it.

        See `prediction.prior_summary.summarise_prior`.
        """
        from ..prediction.prior_summary import summarise_prior

        return summarise_prior(self, screen_like, draws, seed, start)


@dataclass(frozen=True)
class Cells:
    """A minibatch as the story sees it: all tensors share the first dimension (cells)."""

    expression: Tensor  # (cells, genes) log1p counts per 10,000, or the input's own scale
    observed: Tensor  # (cells, genes) what the likelihood observes: the same, or counts
    condition: Tensor  # (cells,) index into the story's conditions
    batch: Tensor  # (cells,)
    library: Tensor  # (cells,)


@dataclass(frozen=True)
class Globals:
    """One value of everything that is shared by cells."""

    effects: Tensor  # w (targets, latents)
    graph: Tensor  # L (latents, latents), or (conditions, latents, latents) where it depends on u
    coupling: Tensor  # B (background, latents): background -> responsive; (conditions, ...) where it depends on u
    log_variance: Tensor  # nu (targets, latents)
    kappa: Tensor  # (latents,)
    composition: dict[str, Tensor]
    noise: Tensor  # (genes,)
    shift: Tensor  # m (conditions, latents), interactions included
    residual: Tensor  # r (conditions, genes)
    penetrance: Tensor  # rho (targets, 1): share of a target's cells that respond
    rate: Tensor  # rho_d (conditions,)
    background: dict[str, Tensor] = field(default_factory=dict)  # law of z_b where alignment leaves it free
    loadings: Tensor | None = None  # what is added to the decoder's responsive loadings (latents, genes), where they are drawn


class Story(nn.Module):
    """The Pyro program for one screen: `story(cells)` states every site for a minibatch of cells."""

    design: Tensor
    effect_scale: Tensor
    typical: Tensor
    noise_start: Tensor
    level: Tensor
    spread: Tensor
    unit: Tensor
    stretch_unit: Tensor
    order: Tensor | None
    loadings_turn: Tensor
    loadings_sd: Tensor

    def __init__(
        self, model: PerturbedVAE, design: Tensor, n_cells: int, n_batches: int, n_genes: int, responsive: int
    ) -> None:
        super().__init__()
        self.model, self.n_cells = model, n_cells
        self.decoder = Decoder(n_batches, responsive, model.background, n_genes)
        self.register_buffer("design", design)  # (conditions, targets)
        self.register_buffer("effect_scale", torch.ones(responsive))  # what the effect prior calls its scale, per latent
        self.register_buffer("typical", torch.ones(responsive))  # typical size of an effect, of targets without one, too
        self.register_buffer("noise_start", torch.ones(n_genes))  # centre of the noise prior
        self.register_buffer("level", torch.ones(n_genes))  # control mean of a gene on the log scale
        self.register_buffer(
            "spread", torch.ones(n_genes)
        )  # within-condition sd of a gene: unit of the residual r
        self.register_buffer("stretch_unit", torch.ones(()))  # unit of the stretch of combinations
        self.register_buffer("unit", torch.ones(responsive))  # control-cell sds in one unit of a latent
        axes = model.composition.buffers(responsive) if hasattr(model.composition, "buffers") else {}
        self._axes = tuple(axes)
        for name, axis in axes.items():
            self.register_buffer(f"composition_{name}", axis)
        if hasattr(model.loadings, "sample"):
            self.register_buffer("loadings_turn", torch.eye(responsive))  # (latents, axes) of the errors of loadings
            self.register_buffer("loadings_sd", torch.ones(responsive, n_genes))  # (axes, genes), on the predictor's scale
        self.combinations = torch.nonzero(is_combination(design)).flatten().tolist()
        sort, numbered = getattr(model.graph, "order", None), list(range(responsive))
        order = numbered if sort is None else list(sort(responsive))  # latents from causes to effects
        self.register_buffer("order", None if order == numbered else torch.tensor(order), persistent=False)

    @property
    def n_latents(self) -> int:
        return int(self.effect_scale.shape[0])

    def plates(self) -> Plates:
        """Plates of the global sites, fresh for one run of the program."""
        return Plates.make(self.design.shape[1], self.model.background, self.n_latents, len(self.noise_start))

    def shared(self) -> dict[str, Any]:
        """Sites shared by all cells but for those of single combinations."""
        like, n_b, plates = self.effect_scale, self.model.background, self.plates()
        w = self.model.effects.sample(plates, like)  # (targets, latents)
        graph = self.model.graph.sample(plates, like)  # edges of L, Eqs. 6-9
        coupling, nu = like.new_zeros(n_b, len(like)), torch.zeros_like(w)
        if self.model.coupling > 0:
            with plates.background, plates.latents:
                coupling = pyro.sample("coupling", dist.Normal(coupling, self.model.coupling))  # B, Eq. 59: L_rb
        if self.model.variance_spread > 0:
            with plates.targets, plates.latents:
                nu = pyro.sample("log_variance", dist.Normal(nu, self.model.variance_spread))  # v(u), shrunk to v(0) = 1
        kappa = self.model.interaction.sample(plates, like)
        composition = self.model.composition.sample(plates, self.typical)
        penetrance = self.model.penetrance.sample(plates, like)
        noise = self.model.likelihood.sample(plates, self.noise_start)
        free = getattr(self.model.alignment, "sample", None)
        background = {} if free is None else free(plates, like)
        draw: Any = getattr(self.model.loadings, "sample", None)
        drawn = {} if draw is None else {"loadings": self.loadings_turn @ draw(plates, self.loadings_sd)}
        return {"background": background, "effects": w, "graph": graph, "coupling": coupling, "log_variance": nu, "kappa": kappa,
                "composition": composition, "penetrance": penetrance, "noise": noise, **drawn}  # fmt: skip

    def compose(self, shared: dict[str, Any], design: Tensor) -> Tensor:
        """Mean effect of conditions without their interaction, shape (conditions, latents)."""
        values = shared["composition"] | self.axes()
        return self.model.composition.compose(values, design, shared["effects"], self.unit)

    def axes(self) -> dict[str, Tensor]:
        """Fixed axes of the composition by name; empty for most."""
        return {name: getattr(self, f"composition_{name}") for name in self._axes}

    def interact(self, shared: dict[str, Any], design: Tensor, composed: Tensor) -> tuple[Tensor, Tensor]:
        """State what these rows do beyond `composed` (combinations, latents): eta, alike, and the residual r (.., genes)."""
        part, n = self.model.interaction, len(design)
        width = part.latent_width(shared["kappa"], self.typical, design, shared["effects"])
        surprise, eta = width.new_ones(n), torch.zeros_like(width)
        r = width.new_zeros(n, len(self.spread))
        with pyro.plate("combinations", n, dim=-1):
            if part.surprise_spread > 0:
                surprise = pyro.sample("surprise", dist.LogNormal(torch.zeros_like(surprise), part.surprise_spread))
            if part.stretch > 0:
                s = pyro.sample("stretch", dist.Normal(torch.zeros_like(surprise), part.stretch * self.stretch_unit))
                eta = eta + s.unsqueeze(-1) * composed
            if part.width > 0:
                sd = width * surprise.unsqueeze(-1)
                eta = eta + pyro.sample("interaction", dist.Normal(torch.zeros_like(sd), sd).to_event(1))
            if part.outside > 0:
                sd = part.outside * self.spread * surprise.unsqueeze(-1)
                r = pyro.sample("residual", dist.Normal(torch.zeros_like(sd), sd).to_event(1))
        return eta, r

    def globals(self) -> Globals:
        """State every global site; conditions are the rows of the training design."""
        shared = self.shared()
        shift = self.compose(shared, self.design)
        residual = shift.new_zeros(len(self.design), self.spread.shape[0])
        rate = self.model.penetrance.rate(shared["penetrance"], self.design)
        if self.combinations:
            eta, r = self.interact(shared, self.design[self.combinations], shift[self.combinations])
            rows = torch.tensor(self.combinations, device=shift.device)
            shift = shift.index_add(0, rows, eta)
            residual = residual.index_copy(0, rows, rate[rows].unsqueeze(-1) * r)
        edges = self.edges(shared, self.design)
        return Globals(shift=shift, residual=residual, rate=rate, **(shared | edges))

    def edges(self, shared: dict[str, Any], design: Tensor) -> dict[str, Tensor]:
        """L and B of conditions: `graph` and `coupling`, with a leading dimension of conditions only where they depend on u."""
        part, values = self.model.graph, shared["graph"]
        modulate = getattr(part, "background", None)
        coupling = shared["coupling"] if modulate is None else modulate(values, design, shared["coupling"])
        return {"graph": part.matrix(values, design), "coupling": coupling}

    def noise_variance(self, log_variance: Tensor, design: Tensor) -> Tensor:
        """v(u) with log v = sum_p u_p nu_p clipped to +-variance_limit and v(0) = 1, shape (conditions, latents)."""
        limit = self.model.variance_limit
        return (design @ log_variance).clamp(-limit, limit).exp()

    def background_law(self, g: Globals, condition: Tensor) -> dist.TorchDistribution:
        """p(z_b) of cells with this condition index (cells,): Normal(0, I), unless alignment leaves it free."""
        law = getattr(self.model.alignment, "law", None)
        if law is not None:
            return law(g.background, self.design, condition)
        return dist.Normal(g.shift.new_zeros(len(condition), self.model.background), 1.0).to_event(1)

    def responsive_law(self, g: Globals, z_b: Tensor, condition: Tensor) -> dist.TorchDistribution:
        """p(z_r | z_b, u), Eq. 59, for cells with background z_b (cells, background) and condition index (cells,)."""

        def escaped() -> StructuralNormal:  # a cell that did not respond is a control cell
            control = torch.nonzero((self.design == 0).all(-1)).flatten()[:1]
            return self.full_law(g, z_b, control.expand(len(condition)))

        return self.model.penetrance.law(g.rate[condition], self.full_law(g, z_b, condition), escaped)

    def full_law(self, g: Globals, z_b: Tensor, condition: Tensor) -> StructuralNormal:
        """The same for cells that all respond."""
        scale = self.noise_variance(g.log_variance, self.design)[condition].sqrt()
        graph = g.graph if g.graph.dim() == 2 else g.graph[condition]
        carried = z_b @ g.coupling if g.coupling.dim() == 2 else (z_b.unsqueeze(1) @ g.coupling[condition]).squeeze(1)
        return StructuralNormal(carried + g.shift[condition], graph, scale, self.order)

    def forward(self, cells: Cells, index: Tensor | None = None) -> None:
        g = self.globals()
        n = len(cells.condition)
        with pyro.plate(
            "cells", self.n_cells, subsample=index if index is not None else torch.arange(n), dim=-1
        ):
            z_b = pyro.sample("z_b", self.background_law(g, cells.condition))
            z_r = pyro.sample("z_r", self.responsive_law(g, z_b, cells.condition))  # (cells, latents)
            eta = self.decoder(z_b, z_r, cells.batch, g.loadings)  # (cells, genes)
            if self.combinations:
                eta = eta + g.residual[cells.condition]
            pyro.sample(
                "x", self.model.likelihood.law(eta, g.noise, cells.library, self.level), obs=cells.observed
            )


def effect_of(g: Globals, order: Tensor | None = None) -> Tensor:
    """Total latent shift of each training condition, (I - L)^{-1} m, shape (conditions, latents); `order` as `Story` has it."""
    return propagate(g.shift, g.graph, order)
