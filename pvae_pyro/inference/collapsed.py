"""The density of all cells with their latents integrated out: exact where the story is linear and normal given its globals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..screen import Screen
from ..story import Full, Gaussian, Globals, PerturbedVAE, Story
from ..story.latents import carried
from ..story.loadings import GeneSets

MOST_MOMENTS = 100_000  # conditions x genes x genes: all of them are touched in every evaluation, half an hour of chains


def lacking(model: PerturbedVAE) -> list[str]:
    """What a model would have to have for cells to be linear and normal in their latents, with one graph for all conditions."""
    wanted = {
        'likelihood = Gaussian(link="identity")': isinstance(model.likelihood, Gaussian) and model.likelihood.link == "identity",
        "penetrance = Full()": isinstance(model.penetrance, Full),
        "a graph that is the same in every condition": not hasattr(model.graph, "background"),
        "an alignment that leaves z_b ~ Normal(0, I)": not hasattr(model.alignment, "law"),
        "loadings that are parameters": model.loadings is None or isinstance(model.loadings, GeneSets),
    }
    return [name for name, there in wanted.items() if not there]


def check_linear(model: PerturbedVAE) -> None:
    """Raise InputError for a model that lacks something."""
    if missing := lacking(model):
        raise InputError(
            f"globals can be sampled only where latents of cells integrate out; that needs {', '.join(missing)}. "
            "Change the story or take another guide."
        )


def check_small(screen: Screen) -> None:
    """Raise InputError for a screen on which chains would take hours."""
    n, g = len(screen.conditions), screen.n_genes
    if n * g * g > MOST_MOMENTS:
        raise InputError(
            f"sampling looks at covariances of {n} conditions among {g} genes at every step, which would take hours; "
            f"choose fewer genes ({math.isqrt(MOST_MOMENTS // n)} at most) or another guide."
        )


@dataclass(frozen=True, eq=False)
class CellMoments:
    """Sufficient statistics of cells given the decoder's intercepts, float64: count (conditions,), mean (conditions, genes) of
    x - intercept of the cell's batch, scatter (conditions, genes, genes) around that mean."""

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, screen: Screen, rows: np.ndarray, intercept: Tensor) -> CellMoments:
        """Of these cells of a screen; `intercept` (batches, genes)."""
        n, g = len(screen.conditions), screen.n_genes
        base = intercept.double()
        count, mean, scatter = torch.zeros(n).double(), torch.zeros(n, g).double(), torch.zeros(n, g, g).double()
        for c in range(n):
            own = rows[screen.condition[rows] == c]
            if not len(own):
                continue
            x = torch.as_tensor(screen.expression[own].toarray()).double() - base[torch.as_tensor(screen.batch[own]).long()]
            count[c] = len(own)
            mean[c] = x.mean(0)
            scatter[c] = (x - mean[c]).T @ (x - mean[c])
        return cls(count, mean, scatter)

    def log_likelihood(self, story: Story, g: Globals) -> Tensor:
        """log p(all cells | globals), a scalar; NaN where the covariance is not positive definite in floating point.

        A cell of condition d is Normal(m_d (I - L)^{-T} W_r + r_d, F' D_d^2 F + Psi) with F = [W_b + B (I - L)^{-T} W_r;
        (I - L)^{-T} W_r] (Eq. 59), D_d = diag(1, sqrt v(u_d)); Woodbury's identity keeps all algebra at the size of latents.
        """
        pushed = carried(story.decoder.responsive, g.graph, story.order)
        background = story.decoder.background + g.coupling @ pushed
        v = story.noise_variance(g.log_variance, story.design)
        factors = torch.cat([background, pushed])
        scale = torch.cat([v.new_ones(len(v), len(background)), v.sqrt()], 1)
        d = self.mean - g.shift @ pushed - g.residual
        precision = g.noise.square().reciprocal()
        weighted = factors * precision
        identity = torch.eye(len(factors), dtype=v.dtype)
        inner, failed = torch.linalg.cholesky_ex(identity + _both(scale, weighted @ factors.T))
        gap = d @ weighted.T
        own = torch.einsum("fdg,hg->dfh", (weighted @ self._wide).unflatten(-1, self.mean.shape), weighted)
        own = _both(scale, own + self.count[:, None, None] * gap.unsqueeze(-1) * gap.unsqueeze(-2))
        explained = torch.cholesky_solve(own, inner).diagonal(dim1=-2, dim2=-1).sum(-1)
        squares = self.scatter.diagonal(dim1=-2, dim2=-1) @ precision + self.count * (d.square() @ precision)
        log_det = 2 * inner.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.log().sum()
        constant = len(precision) * math.log(2 * math.pi)
        invalid = torch.where(failed.sum() > 0, math.nan, 0.0)
        return invalid - 0.5 * (self.count * (log_det + constant) + squares - explained).sum()

    @property
    def _wide(self) -> Tensor:
        """The scatters side by side (genes, conditions * genes): one product for all conditions."""
        return self.scatter.permute(1, 0, 2).flatten(1)


def _both(scale: Tensor, matrix: Tensor) -> Tensor:
    """diag(scale) matrix diag(scale) for every condition."""
    return scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
