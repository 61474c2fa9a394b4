"""Cells whose latents can be identified, and worlds that break one condition of it (paper section 3 and theorem).

Latents, noise, edges and mixing follow SuaVE's `gen_TCL_data_ortho` (arXiv 2208.14153), by an author of the paper, which leaves
ranges and mixing unsaid. x = base + lift(mix(z)) + noise with `layers` times (LeakyReLU(0.2), random rotation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.stats import ortho_group

from pvae_pyro.errors import InputError
from pvae_pyro.simulate.truth import stream

Floats = NDArray[np.float64]
SLOPE = 0.2


@dataclass(frozen=True)
class Environments:
    """What a world is made of; the defaults are the paper's sizes.

    `responsive`, `background`: latents; `perturbations`: environments beside control (dim u); `genes`: dim x;
    `train`, `test`: cells, spread evenly over the environments; `layers` of the mixing, 0 for a linear one.
    `noise`: sd of the measurement, where genes have an sd of about one.
    `edges`: probability that an edge of an environment is there; every perturbation p cuts those into latent p mod `responsive`.
    `constant_variance`: the noise of a latent has one sd in all environments. `coupled`: edges from the background exist.
    `paired`: every perturbed cell has the background of one control cell (theory) in place of one of its own (practice).
    """

    responsive: int = 4
    background: int = 7
    perturbations: int = 12
    genes: int = 500
    train: int = 3000
    test: int = 1000
    layers: int = 3
    noise: float = 0.02
    edges: float = 1.0
    constant_variance: bool = False
    coupled: bool = True
    paired: bool = False

    def __post_init__(self) -> None:
        lows = {"responsive": 1, "background": 1, "perturbations": 1, "genes": self.responsive + self.background, "layers": 0}
        lows |= {"train": 2 * (self.perturbations + 1), "test": self.perturbations + 1}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, but {getattr(self, name)} was given.")
        if not (0 <= self.edges <= 1 and self.noise >= 0):
            raise InputError(f"edges must be a probability and noise not negative, but found {self.edges}, {self.noise}.")


@dataclass(frozen=True, eq=False)
class Identifiable:
    """A simulated world; C = 1 + perturbations environments, control first, N = train + test cells.

    `adata`: the training cells, X (train, genes) positive float32, `obs["condition"]`; `held_out`: the test cells.
    `condition` (N,), `z_background` (N, background), `z_responsive` (N, responsive): training cells, then test cells.
    `partner` (train,): row of the training control that shares a cell's background where the world is paired, else -1.
    `graph` (C, responsive, responsive) L, `coupling` (C, responsive, background) B, `mean`, `sd` (C, responsive) of the noise.
    """

    adata: AnnData
    held_out: AnnData
    condition: NDArray[np.int64]
    z_background: Floats
    z_responsive: Floats
    partner: NDArray[np.int64]
    graph: Floats
    coupling: Floats
    mean: Floats
    sd: Floats
    world: Environments


def identifiable(world: Environments | None = None, seed: int = 0) -> Identifiable:
    """Draw a world; the same arguments give the same cells. Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError(f"The seed of a simulation must not be negative, found {seed}; use 0 or more.")
    world = world or Environments()
    count, k, b = world.perturbations + 1, world.responsive, world.background
    rng = stream(seed, "environments")
    graph = np.tril(_edges(rng, world.edges, (count, k, k)), -1)
    coupling = _edges(rng, world.edges, (count, k, b)) * world.coupled
    for p in range(1, count):
        target = (p - 1) % k
        graph[p, target], coupling[p, target] = 0.0, 0.0  # a perfect intervention: theorem, assumption (iv)
    mean, sd = rng.uniform(-2, 2, (count, k)), rng.uniform(0.1, 2, (count, k))
    if world.constant_variance:
        sd[:] = sd[0]

    n = world.train + world.test
    condition = np.concatenate([np.arange(world.train) % count, np.arange(world.test) % count])
    rng = stream(seed, "cells")
    z_b = rng.normal(size=(n, b))
    partner = np.full(world.train, -1)
    if world.paired:
        controls = np.flatnonzero(condition[: world.train] == 0)
        perturbed = np.flatnonzero(condition[: world.train] != 0)
        partner[perturbed] = rng.choice(controls, len(perturbed))
        z_b[perturbed] = z_b[partner[perturbed]]
    z_r = mean[condition] + sd[condition] * rng.normal(size=(n, k))
    z_r += np.einsum("nkb,nb->nk", coupling[condition], z_b)
    for i in range(1, k):
        z_r[:, i] += np.einsum("nj,nj->n", graph[condition, i], z_r)
    x = _expression(world, np.concatenate([z_b, z_r], axis=1), seed)
    names = np.array(["control", *(f"P{p:02d}" for p in range(1, count))])
    parts = [_adata(x[rows], names[condition[rows]]) for rows in (slice(0, world.train), slice(world.train, n))]
    return Identifiable(adata=parts[0], held_out=parts[1], condition=condition, z_background=z_b,
                        z_responsive=z_r, partner=partner, graph=graph, coupling=coupling, mean=mean, sd=sd,
                        world=world)  # fmt: skip


def mix(z: Floats, rotations: list[Floats]) -> Floats:
    """LeakyReLU(0.2), then a rotation, for every one of them; z (cells, latents)."""
    for rotation in rotations:
        z = np.where(z > 0, z, SLOPE * z) @ rotation
    return z


def _edges(rng: np.random.Generator, probability: float, shape: tuple[int, ...]) -> Floats:
    """+-U(0.2, 1), absent with the rest of the probability."""
    weight = rng.uniform(0.2, 1, shape) * rng.choice([-1.0, 1.0], shape)
    return np.where(rng.random(shape) < probability, weight, 0.0)


def _expression(world: Environments, z: Floats, seed: int) -> NDArray[np.float32]:
    rng = stream(seed, "mixing")
    size = world.responsive + world.background
    rotations = [ortho_group.rvs(size, random_state=rng) for _ in range(world.layers)]
    x = mix(z, rotations) @ rng.normal(size=(size, world.genes))
    x = x / x.std(axis=0).mean() + world.noise * stream(seed, "noise").normal(size=x.shape)
    return np.asarray(x - x.min(axis=0) + 1.0, dtype=np.float32)  # a screen wants positive expression


def _adata(x: NDArray[np.float32], labels: NDArray[np.str_]) -> AnnData:
    obs = pd.DataFrame({"condition": pd.Categorical(labels)}, index=[f"cell{i + 1:05d}" for i in range(len(x))])
    return AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"gene{g + 1:04d}" for g in range(x.shape[1])]))
