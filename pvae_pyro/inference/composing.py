"""Start of a composition: its most probable sites given closed-form shifts of the training combinations (design 3.7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..guides.sites import Site, read_sites
from ..story import Story

FEWEST = 3  # combinations of measured singles below which the prior says more than they do
WEIGHTS = "pairing"  # the site that enters a composition linearly, by its `features`
WIDTH_SPREAD = 0.5  # prior sd of the log of a width that all latents share; each latent's own is the model's


@dataclass(frozen=True, eq=False)
class Shifts:
    """Closed-form shifts of the combinations whose targets were all measured alone.

    singles, singles_variance (targets, latents): effects held fixed and their posterior variance; design (combinations, targets);
    shifts and their sampling variance (combinations, latents).
    """

    singles: Tensor
    singles_variance: Tensor
    design: Tensor
    shifts: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class ComposedStart:
    """Site values with their sds on the unconstrained scale (None: as it is), and what `compose` makes of them.

    kappa: interaction widths (latents,) and the sds of their logs; stretch (combinations of `Shifts`,). None where too few
    combinations say anything. `stretch_unit`: size of the stretches in multiples of the prior's.
    """

    sites: dict[str, tuple[Tensor, Tensor | None]]
    values: dict[str, Any]
    kappa: tuple[Tensor, Tensor] | None
    stretch: Tensor | None
    stretch_unit: float = 1.0

    def compose(self, story: Story, design: Tensor, effects: Tensor) -> Tensor:
        """Mean effect (conditions, latents)."""
        return story.model.composition.compose(self.values | story.axes(), design, effects, story.unit)


def composition_sites(story: Story) -> list[Site]:
    """Sites of the composition, in order."""
    return read_sites(lambda: story.model.composition.sample(story.plates(), story.typical))


def start_composition(story: Story, data: Shifts) -> ComposedStart:
    """Posterior mode of the composition's sites and of the interaction width, from the evidence of the shifts.

    Effects of singles are held at their shrunken values, which leaves no pull of the scale towards zero. Interactions, stretch,
    sampling noise and linear weights are integrated out in closed form, latent by latent, since the mode of a weight and
    of its own scale together would be zero. Weights then have their exact posterior, in a basis where it nearly factorises.
    """
    _place_axes(story, data)
    sites = [site for site in composition_sites(story) if not site.is_gate]
    free = [site for site in sites if site.name != WEIGHTS]
    start = [_inverse(site) for site in free]
    if len(data.design) < FEWEST:
        values, _ = _stated(story, sites, [_inverse(site) for site in sites])
        return ComposedStart({}, values, None, None)
    part = story.model.interaction
    width = torch.tensor(max(part.width, 1e-3)).log()
    u = _minimise(lambda v: _energy(story, data, free, v, width), [*start, width, torch.zeros(())])
    sd = _curvature(lambda v: _energy(story, data, free, v, width), u)
    placed: dict[str, tuple[Tensor, Tensor | None]] = {
        site.name: (_forward(site, one), spread) for site, one, spread in zip(free, u[:-2], sd[:-2], strict=True)
    }
    log_width, unit = u[-2], float(u[-1].exp())
    with torch.no_grad():
        parts = _parts(story, data, free, u[:-2], log_width)
        stretch = parts.stretch(part.stretch * unit)
        misfit = parts.misfit - stretch.unsqueeze(1) * parts.composed
        if parts.features is not None:
            placed[WEIGHTS] = _weights(story, misfit, parts.noise, parts.features, parts.strength)
            misfit = misfit - parts.features @ story.axes()["basis"] @ placed[WEIGHTS][0]
        # half of a latent's own ratio, half of all: forty combinations do not tell every latent's width
        ratio = (misfit.square() / parts.noise).mean(0)
        kappa = log_width.exp() * (0.5 * ratio / ratio.mean() + 0.5).sqrt()
        # d noise / d log kappa is 2 surprise2 width^2: the information of normal residuals about it, and the prior's
        share = parts.drawn / parts.noise
        kappa_sd = (2 * share.square().sum(0) + 1 / max(part.width_spread, 1e-3) ** 2).rsqrt()
        values, _ = _stated(story, sites, [_placed_inverse(site, placed) for site in sites])
    return ComposedStart(placed, values, (kappa, kappa_sd), stretch, unit)


def _place_axes(story: Story, data: Shifts) -> None:
    if "directions" in story.axes():
        axes = story.axes()["directions"]
        _, _, right = torch.linalg.svd(story.unit * data.singles, full_matrices=False)
        n = min(axes.shape[1], len(right))
        axes[:, :n] = right[:n].T


@dataclass(frozen=True, eq=False)
class _Parts:
    """The shifts of combinations as a Gaussian law, given unknowns: misfit ~ Normal(0, noise + weights + stretch).

    misfit and independent variance `noise` (combinations, latents), `drawn` the interaction's part of it; `composed`, which
    stretch multiplies as a whole; features (combinations, features) of the linear weights with prior sd `strength`
    (latents,), or None.
    """

    misfit: Tensor
    noise: Tensor
    drawn: Tensor
    composed: Tensor
    features: Tensor | None
    strength: Tensor

    def covariance(self) -> Tensor:
        """Of each latent, without stretch, (latents, combinations, combinations)."""
        own = torch.diag_embed(self.noise.T)
        if self.features is None:
            return own
        return own + self.strength.square().reshape(-1, 1, 1) * (self.features @ self.features.T)

    def negative_log_density(self, stretch: Tensor | None) -> Tensor:
        """Stretch ties the latents of a combination together: a term of as many dimensions as combinations (Woodbury)."""
        root = torch.linalg.cholesky(self.covariance())
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum()
        solved = torch.cholesky_solve(self.misfit.T.unsqueeze(-1), root).squeeze(-1)  # (latents, combinations)
        square = 0.5 * (self.misfit.T * solved).sum()
        if stretch is None:
            return square + log_det
        inverse = torch.cholesky_inverse(root)
        pull = stretch * (self.composed.T * solved).sum(0)
        coupled = stretch**2 * torch.einsum("kd,kde,ke->de", self.composed.T, inverse, self.composed.T)
        outer = torch.linalg.cholesky(coupled + torch.eye(len(pull)))
        explained = torch.cholesky_solve(pull.unsqueeze(-1), outer).squeeze(-1)
        return square + log_det - 0.5 * (pull * explained).sum() + outer.diagonal().log().sum()

    def stretch(self, width: float) -> Tensor:
        """Posterior mean of the stretch of each combination, (combinations,)."""
        inverse = torch.linalg.inv(self.covariance())
        pull = torch.einsum("kd,kde,ke->d", self.composed.T, inverse, self.misfit.T)
        coupled = torch.einsum("kd,kde,ke->de", self.composed.T, inverse, self.composed.T)
        return torch.linalg.solve(coupled + torch.eye(len(pull)) / max(width, 1e-6) ** 2, pull)


def _energy(story: Story, data: Shifts, sites: list[Site], u: list[Tensor], centre: Tensor) -> Tensor:
    """Negative log evidence of the shifts, less the log priors of what is varied: sites, logs of the width and stretch's unit."""
    *free, log_width, log_unit = u
    parts = _parts(story, data, sites, free, log_width)
    _, log_prior = _stated(story, sites, free)
    part = story.model.interaction
    # without a width of latents stretch would have to explain all that pairs do: then it is not learnt
    unit = log_unit.exp() if part.width > 0 else torch.ones(())
    evidence = parts.negative_log_density(part.stretch * unit if part.stretch else None)
    return evidence - log_prior + 0.5 * (((log_width - centre).square() + log_unit.square()) / WIDTH_SPREAD**2)


def _parts(story: Story, data: Shifts, sites: list[Site], u: list[Tensor], log_width: Tensor) -> _Parts:
    values, _ = _stated(story, sites, u)
    part, interaction = story.model.composition, story.model.interaction
    weights = values.get(WEIGHTS)
    if weights is not None:
        values = values | {WEIGHTS: torch.zeros_like(weights)}
    every = values | story.axes()
    composed = part.compose(every, data.design, data.singles, story.unit)
    total = (data.design @ data.singles).square().sum(1).clamp_min(1e-12)
    factor2 = composed.square().sum(1) / total
    kappa = log_width.exp().expand(story.n_latents)
    width = interaction.latent_width(kappa, story.typical, data.design, data.singles)
    surprise2 = math.exp(2 * interaction.surprise_spread**2)  # mean square of a factor whose median is 1
    noise = data.variance + factor2.unsqueeze(1) * (data.design.square() @ data.singles_variance)
    drawn = surprise2 * width.square()
    features = None
    if weights is not None and hasattr(part, "features"):
        features = part.features(every | {"basis": torch.eye(len(weights))}, data.design, data.singles, story.unit)
    strength = values.get("pairing_scale", torch.ones(())) * story.typical
    return _Parts(data.shifts - composed, noise + drawn, drawn, composed, features, strength)


def _weights(
    story: Story, misfit: Tensor, noise: Tensor, features: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior mean and mean-field sd (features, latents) in the basis of `features`, which is put into the story."""
    double = features.double()  # latents without effects make products that are no numbers in single precision
    basis = torch.linalg.eigh(double.T @ double)[1].to(features.dtype)
    story.axes()["basis"].copy_(basis)
    turned = features @ basis
    precision = torch.einsum("df,dk,dg->kfg", turned, 1 / noise, turned)
    precision = precision + torch.diag_embed((1 / strength.square()).unsqueeze(1).expand(-1, turned.shape[1]))
    right = torch.einsum("df,dk->kf", turned, misfit / noise)
    mean = torch.linalg.solve(precision, right.unsqueeze(-1)).squeeze(-1)
    return mean.T, precision.diagonal(dim1=-2, dim2=-1).rsqrt().T


def _inverse(site: Site) -> Tensor:
    assert site.support is not None
    return site.support.inv(site.centre).clone()


def _placed_inverse(site: Site, placed: dict[str, tuple[Tensor, Tensor | None]]) -> Tensor:
    assert site.support is not None
    return site.support.inv(placed[site.name][0]) if site.name in placed else _inverse(site)


def _forward(site: Site, u: Tensor) -> Tensor:
    assert site.support is not None
    return site.support(u.detach())


def _stated(story: Story, sites: list[Site], u: list[Tensor]) -> tuple[dict[str, Any], Tensor]:
    """Values that `compose` needs at these unconstrained sites, and the log prior density of these sites there."""
    data, log_jacobian = {}, torch.zeros(())
    for site, one in zip(sites, u, strict=True):
        assert site.support is not None
        data[site.name] = site.support(one)
        log_jacobian = log_jacobian + site.support.log_abs_det_jacobian(one, data[site.name]).sum()
    with torch.random.fork_rng(devices=[]), poutine.block(), poutine.trace() as trace, poutine.condition(data=data):
        values = story.model.composition.sample(story.plates(), story.typical)
    return values, trace.trace.log_prob_sum(lambda name, node: name in data) + log_jacobian


def _minimise(energy: Any, start: list[Tensor]) -> list[Tensor]:
    u = [one.detach().clone().requires_grad_() for one in start]
    optimiser = torch.optim.LBFGS(u, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = energy(u)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return [one.detach() for one in u]


def _curvature(energy: Any, u: list[Tensor]) -> list[Tensor]:
    """Posterior sds of each unknown from the inverse Hessian."""
    sizes = [one.numel() for one in u]

    def flat(v: Tensor) -> Tensor:
        pieces = torch.split(v, sizes)
        out: Tensor = energy([p.reshape(one.shape) for p, one in zip(pieces, u, strict=True)])
        return out

    with torch.enable_grad():
        hessian = torch.autograd.functional.hessian(flat, torch.cat([one.reshape(-1) for one in u]))
    values, vectors = torch.linalg.eigh(hessian)
    variance = (vectors.square() / values.clamp_min(1e-2)).sum(1)
    return [v.sqrt().reshape(one.shape) for v, one in zip(torch.split(variance, sizes), u, strict=True)]
