"""Log density of single cells that were held out, by importance sampling of their latents."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray

import pvae_pyro as pv
from pvae_pyro.guides.responsive import encode
from pvae_pyro.inference.responses import known_cells

SAMPLES = 50


@torch.no_grad()
def log_density(fit: pv.Fit, screen: pv.Screen, seed: int = 0) -> NDArray[np.float64]:
    """log p(x | u) of each cell (cells,), globals at their centre: mean over draws of p(x, z) / q(z | x), in nats.

    A lower bound on average, with as many draws of q for every fit; with the same seed cells share their noise.
    """
    story, guide = fit.modules()
    g = guide.assemble(guide.central_values())
    out = np.empty(screen.n_cells)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for rows, cells in known_cells(fit, screen):
            loc, scale = guide.background(cells)
            q_b, prior = dist.Normal(loc, scale).to_event(1), dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
            weights = []
            for _ in range(SAMPLES):
                z_b = q_b.sample()
                law = story.responsive_law(g, z_b, cells.condition)
                q_r = encode(law, guide, cells, z_b, g)
                z_r = q_r.rsample()
                eta = story.decoder(z_b, z_r, cells.batch) + g.residual[cells.condition]
                x = fit.model.likelihood.law(eta, g.noise, cells.library, story.level).log_prob(cells.observed)
                latent = prior.log_prob(z_b) - q_b.log_prob(z_b) + law.log_prob(z_r) - q_r.log_prob(z_r)
                weights.append(x + latent)
            out[rows] = (torch.logsumexp(torch.stack(weights), 0) - math.log(SAMPLES)).double().numpy()
    return out
