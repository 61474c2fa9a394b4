"""What is true in a simulated screen: every latent of the story, drawn once from seeded streams."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from pvae_pyro.simulate.worlds import World

Floats = NDArray[np.float64]
_CONTROL = "control"
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
_SAFE_SDS = 6.0  # distance of a Gaussian world's mean from zero: no value is ever clipped


@dataclass(frozen=True, eq=False)
class CellTruth:
    """Hidden states of the cells, in the order of the cells of the AnnData."""

    condition: NDArray[np.int64]  # (cells,) index into Truth.conditions
    batch: NDArray[np.int64]  # (cells,)
    escaped: NDArray[np.bool_]  # (cells,) perturbed cells that did not respond; never a control cell
    z_background: Floats  # (cells, background)
    z_responsive: Floats  # (cells, responsive)
    depth: Floats  # (cells,) sequencing depth: expected counts per unit of rate; ones in Gaussian worlds


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth of a simulated screen; C conditions, T targets, K responsive latents, G genes.

    A cell's decoder output is base + f(loadings_background z_b + loadings_responsive z_r) + batch_effects,
    f the identity or s * tanh(. / s): log expression rate of counts, or noise-free Gaussian expression.
    """

    targets: tuple[str, ...]
    conditions: tuple[str, ...]  # "control", then by number of targets and name
    genes: tuple[str, ...]
    design: NDArray[np.float32]  # (C, T)
    gates: NDArray[np.bool_]  # (T, K)
    effects: Floats  # (T, K) w = gate * effect
    graph: Floats  # (K, K) strictly lower triangular L
    background_to_responsive: Floats  # (K, background) B
    noise_log_variance: Floats  # (T, K) slope of log v in the dose
    scale: float
    kappa: Floats  # (K,)
    interaction_floor: float
    interactions: dict[str, Floats]  # eta (K,) of every combination
    m: Floats  # (C, K) composed effect with its interaction
    latent_mean: Floats  # (C, K) (I - L)^{-1} m, mean of z_r in cells that respond
    loadings_responsive: Floats  # (G, K)
    loadings_background: Floats  # (G, background)
    saturation: float | None
    base: Floats  # (G,) base level; Gaussian worlds: high enough for positive values
    batch_effects: Floats  # (batches, G), centred over batches
    dispersion: Floats | None  # (G,) alpha of counts
    noise_sd: Floats | None  # (G,) residual sd of Gaussian worlds
    log_mean: Floats  # (C, G) expected decoder output of cells that respond, exact
    condition_mean: (
        Floats | None
    )  # (C, G) expected mean of X, exact, non-responders included; None for counts
    cells: CellTruth

    @property
    def escaped(self) -> NDArray[np.bool_]:
        """(cells,) perturbed cells that did not respond."""
        return self.cells.escaped

    def index(self, condition: str) -> int:
        """Row of a condition; ValueError if it is not in this world."""
        return self.conditions.index(condition)

    def decode(self, background: Floats, responsive: Floats, batch: NDArray[np.int64]) -> Floats:
        """(cells, G) decoder output of cells with given latents and batch codes."""
        signal = background @ self.loadings_background.T + responsive @ self.loadings_responsive.T
        return self.base + respond(signal, self.saturation) + self.batch_effects[batch]


def respond(signal: Floats, saturation: float | None) -> Floats:
    """The decoder's response f to its linear map: the signal, or saturation * tanh(signal / saturation)."""
    return signal if saturation is None else saturation * np.tanh(signal / saturation)


def stream(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each part: changing one part of a world leaves the others' draws alone."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def draw_truth(world: World, seed: int) -> Truth:
    """Draw a world's globals, conditions and hidden cell states."""
    n_latents, n_genes = world.responsive, world.genes
    targets = _names("T", world.targets)
    members = _combinations(world, stream(seed, "conditions"))
    conditions = tuple("+".join(targets[t] for t in group) or _CONTROL for group in members)
    design = np.zeros((len(members), world.targets), dtype=np.float32)
    for row, group in enumerate(members):
        design[row, list(group)] = 1.0

    rng = stream(seed, "effects")
    gates = rng.random((world.targets, n_latents)) < world.gate_probability
    effects = np.where(gates, rng.normal(0.0, world.effect_size, gates.shape), 0.0)
    rng = stream(seed, "graph")
    edges = np.tril(rng.random((n_latents, n_latents)) < world.edge_probability, k=-1)
    graph = np.where(edges, rng.normal(0.0, world.edge_size, edges.shape), 0.0)
    drive = stream(seed, "drive").normal(0.0, world.drive, (n_latents, world.background))
    log_variance = stream(seed, "noise variance").normal(0.0, world.noise_modulation, gates.shape)
    kappa = np.full(n_latents, world.interaction)

    combined = design.sum(axis=1) >= 2
    eta = _interactions(world, design, effects, kappa, stream(seed, "interactions"))
    more = combined & (stream(seed, "synergy").random(len(design)) < world.synergy_share)
    eta[more] += world.synergy * design[more].astype(np.float64) @ effects
    m = np.where(combined[:, None], world.scale, 1.0) * (design.astype(np.float64) @ effects) + eta
    latent_mean = _propagate(graph, m)

    rng = stream(seed, "loadings")
    loadings_r = _loadings(rng, n_genes, n_latents, world.loading_probability, world.loading_size)
    loadings_b = _loadings(
        rng, n_genes, world.background, world.loading_probability, world.background_loading_size
    )
    rng = stream(seed, "batches")
    batch_effects = rng.normal(0.0, world.batch_effect, (world.batches, n_genes))
    batch_effects -= batch_effects.mean(axis=0)

    variance = np.exp(np.clip(design @ log_variance, -2.0, 2.0))
    center = latent_mean @ loadings_r.T
    spread = np.sqrt(_signal_variance(graph, drive, loadings_r, loadings_b, variance))
    dispersion, noise_sd = _residual(world, stream(seed, "residual"))
    base = _base(world, stream(seed, "base"), center, spread, batch_effects, noise_sd)
    log_mean = base + _expected_response(center, spread, world.saturation)
    condition_mean = None
    if world.likelihood == "gaussian":
        condition_mean = (1.0 - world.escape) * log_mean + world.escape * log_mean[0]

    return Truth(
        targets=targets,
        conditions=conditions,
        genes=_names("gene", n_genes),
        design=design,
        gates=gates,
        effects=effects,
        graph=graph,
        background_to_responsive=drive,
        noise_log_variance=log_variance,
        scale=world.scale,
        kappa=kappa,
        interaction_floor=world.interaction_floor,
        interactions={conditions[row]: eta[row] for row in np.flatnonzero(combined)},
        m=m,
        latent_mean=latent_mean,
        loadings_responsive=loadings_r,
        loadings_background=loadings_b,
        saturation=world.saturation,
        base=base,
        batch_effects=batch_effects,
        dispersion=dispersion,
        noise_sd=noise_sd,
        log_mean=log_mean,
        condition_mean=condition_mean,
        cells=_cells(world, seed, m, variance, graph, drive),
    )


def _names(prefix: str, count: int) -> tuple[str, ...]:
    """Names of equal width, so that sorting names sorts numbers."""
    width = max(2, len(str(count)))
    return tuple(f"{prefix}{number:0{width}d}" for number in range(1, count + 1))


def _combinations(world: World, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Control, every single, then random doubles and triples in sorted order."""
    groups: list[tuple[int, ...]] = [(), *((t,) for t in range(world.targets))]
    for order, wanted in ((2, world.doubles), (3, world.triples)):
        if wanted:
            possible = list(itertools.combinations(range(world.targets), order))
            chosen = rng.choice(len(possible), size=wanted, replace=False)
            groups += sorted(possible[i] for i in chosen)
    return groups


def _interactions(
    world: World, design: NDArray[np.float32], effects: Floats, kappa: Floats, rng: np.random.Generator
) -> Floats:
    """(C, K) eta_dk ~ Normal(0, kappa_k h_dk), h^2 = h0^2 + sum_{p<q} |w_pk w_qk|; zero below two targets."""
    size = np.abs(effects)
    dose = design.astype(np.float64)
    # sum over p < q of a_p a_q = ((sum a)^2 - sum a^2) / 2
    products = ((dose @ size) ** 2 - dose**2 @ size**2) / 2.0
    width = np.sqrt(world.interaction_floor**2 + np.maximum(products, 0.0))
    eta = rng.normal(size=width.shape) * kappa * width
    return np.where(design.sum(axis=1, keepdims=True) >= 2, eta, 0.0)


def _propagate(graph: Floats, inputs: Floats) -> Floats:
    """(n, K) rows of (I - L)^{-1} inputs by triangular solve."""
    system = np.eye(len(graph)) - graph
    solved: Floats = solve_triangular(system, inputs.T, lower=True, unit_diagonal=True).T
    return solved


def _loadings(rng: np.random.Generator, genes: int, latents: int, probability: float, size: float) -> Floats:
    """(genes, latents) sparse Gaussian loadings."""
    reached = rng.random((genes, latents)) < probability
    return np.where(reached, rng.normal(0.0, size, reached.shape), 0.0)


def _signal_variance(
    graph: Floats, drive: Floats, loadings_r: Floats, loadings_b: Floats, variance: Floats
) -> Floats:
    """(C, G) variance over cells of the decoder's linear map, from z_b and from the noise of z_r."""
    reach = _propagate(graph, np.eye(len(graph))).T  # (I - L)^{-1}, K x K
    total = loadings_r @ reach
    from_background = ((loadings_b + total @ drive) ** 2).sum(axis=1)
    signal: Floats = from_background + variance @ (total**2).T
    return signal


def _residual(world: World, rng: np.random.Generator) -> tuple[Floats | None, Floats | None]:
    """Per-gene dispersion of counts, or residual sd of Gaussian expression."""
    normal = rng.normal(size=world.genes)
    if world.likelihood == "gaussian":
        return None, world.noise * np.exp(world.noise_spread * normal)
    return world.dispersion * np.exp(world.dispersion_spread * normal), None


def _base(
    world: World,
    rng: np.random.Generator,
    center: Floats,
    spread: Floats,
    batch_effects: Floats,
    noise_sd: Floats | None,
) -> Floats:
    """(G,) base levels: control rates sum to one in expectation; Gaussian values stay positive, unclipped."""
    if noise_sd is None:
        log_rate = world.level_spread * rng.normal(size=world.genes)
        # mean of exp over control cells; exact for the linear decoder, near enough for the saturating one
        log_rate -= logsumexp(log_rate + spread[0] ** 2 / 2.0)
        return log_rate
    lowest = respond(center - _SAFE_SDS * spread, world.saturation).min(axis=0) + batch_effects.min(axis=0)
    floor: Floats = _SAFE_SDS * noise_sd - lowest + rng.exponential(world.level_spread, world.genes)
    return floor


def _expected_response(center: Floats, spread: Floats, saturation: float | None) -> Floats:
    """(C, G) E f(a) for a ~ Normal(center, spread), by Gauss-Hermite quadrature where f is not linear."""
    if saturation is None:
        return center
    total = np.zeros_like(center)
    for node, weight in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
        total += weight * respond(center + node * spread, saturation)
    return total


def _cells(world: World, seed: int, m: Floats, variance: Floats, graph: Floats, drive: Floats) -> CellTruth:
    """Draw who the cells are and their latents; a cell that escaped is in the control state."""
    rng = stream(seed, "layout")
    log_size = np.log(world.cells_per_condition) + world.cells_spread * rng.normal(size=len(m) - 1)
    # two cells at least, so that every condition has a variance
    sizes = np.maximum(np.rint(np.exp(log_size)).astype(np.int64), min(2, world.cells_per_condition))
    condition = rng.permutation(np.repeat(np.arange(len(m)), [world.controls, *sizes]))
    n_cells = len(condition)
    batch = rng.integers(world.batches, size=n_cells)
    escaped = (rng.random(n_cells) < world.escape) & (condition > 0)
    depth = np.ones(n_cells)
    if world.likelihood == "negative_binomial":
        depth = world.library_median * np.exp(world.library_spread * rng.normal(size=n_cells))
    rng = stream(seed, "latents")
    state = np.where(escaped, 0, condition)
    background = rng.normal(size=(n_cells, world.background))
    noise = rng.normal(size=(n_cells, world.responsive)) * np.sqrt(variance[state])
    responsive = _propagate(graph, background @ drive.T + m[state] + noise)
    return CellTruth(condition, batch, escaped, background, responsive, depth)
