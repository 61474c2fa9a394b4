"""Joint posterior draws of the globals, shared by every condition that is asked for (design 2, prediction rule)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..guides import AmortizedGuide


@dataclass(frozen=True, eq=False)
class GlobalDraw:
    """One joint draw, with what predictions need of it already multiplied out.

    effects (targets, latents) in the order of the asked-for targets; shared: the story's shared values with these effects;
    responsive (latents, genes) = (I - L)^{-T} W_r; programs (background, genes): what independent standard normals do to the
    predictor of control backgrounds; base and base_variance (genes,) of the predictor over these, batches apart;
    batch_share (batches,); trained shifts and residuals of the training combinations.
    """

    shared: dict[str, Any]
    responsive: Tensor
    programs: Tensor
    base: Tensor
    base_variance: Tensor
    batch_share: Tensor
    trained_shift: Tensor
    trained_residual: Tensor


@torch.no_grad()
def draw_globals(
    guide: AmortizedGuide,
    controls: tuple[Tensor, Tensor],
    batch_counts: Tensor,
    n_new_targets: int,
    draws: int,
    seed: int,
) -> list[GlobalDraw]:
    """`draws` joint draws. `controls`: location and scale of q(z_b | x) of the control cells; they are reweighted by a Bayesian
    bootstrap in every draw, as are the batches (`batch_counts` training cells each). `n_new_targets` targets that no
    condition trained follow the trained ones, their effects drawn from the prior under the draw's own hyperparameters.
    """
    story = guide.story
    loc, scale = controls
    out = []
    # argument checks would cost as much as the draws themselves
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        for number in range(draws):
            # one seed a draw and one for its new targets: asking for an untrained target must not move the others
            torch.manual_seed(_seed(seed, number, 0))
            with poutine.block():
                values = guide.sample_globals()
            g = guide.assemble(values)
            weight = torch.distributions.Exponential(torch.ones(len(loc), dtype=loc.dtype)).sample()
            weight = weight / weight.sum()
            share = torch.distributions.Gamma(batch_counts, torch.ones_like(batch_counts)).sample()
            share = share / share.sum()
            z_mean = weight @ loc
            centred = loc - z_mean
            covariance = (centred * weight.unsqueeze(1)).T @ centred + torch.diag(weight @ scale.square())
            root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(covariance)))
            propagated = _propagated(story.decoder.responsive, g.graph)
            background = story.decoder.background + g.coupling @ propagated
            shared: dict[str, Any] = {
                "effects": g.effects, "graph": g.graph, "coupling": g.coupling, "log_variance": g.log_variance,
                "kappa": g.kappa, "composition": g.composition, "noise": g.noise,
            }  # fmt: skip
            if n_new_targets:
                torch.manual_seed(_seed(seed, number, 1))
                shared = _with_new_targets(guide, values, shared, n_new_targets)
            out.append(
                GlobalDraw(
                    shared=shared,
                    responsive=propagated,
                    programs=root.T @ background,
                    base=z_mean @ background,
                    base_variance=((covariance @ background) * background).sum(0),
                    batch_share=share,
                    trained_shift=g.shift[story.combinations],
                    trained_residual=g.residual[story.combinations],
                )
            )
    return out


def _propagated(loadings: Tensor, graph: Tensor) -> Tensor:
    """(I - L)^{-T} W: what one unit of source on a latent does to the predictor, shape (latents, genes)."""
    identity = torch.eye(graph.shape[0], dtype=graph.dtype, device=graph.device)
    return torch.linalg.solve_triangular((identity - graph).T, loadings, upper=True, unitriangular=True)


def _with_new_targets(
    guide: AmortizedGuide, values: dict[str, Tensor], shared: dict[str, Any], n: int
) -> dict[str, Any]:
    """Effects of `n` further targets from the prior, given this draw's hyperparameters."""
    story = guide.story
    per_target = {*story.model.effects.per_target, "log_variance"}
    kept = {name: value for name, value in values.items() if name not in per_target}
    design = story.design
    story.design = torch.zeros(1, n, dtype=design.dtype, device=design.device)
    try:
        with poutine.block(), poutine.condition(data=kept):
            new = story.shared()
    finally:
        story.design = design
    joined = dict(shared)
    for name in ("effects", "log_variance"):
        joined[name] = torch.cat([shared[name], new[name]])
    return joined


def _seed(seed: int, number: int, purpose: int) -> int:
    return int(
        np.random.SeedSequence([seed, number, purpose]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
