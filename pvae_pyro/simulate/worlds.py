"""Settings of a simulated screen, and the named worlds that the command line offers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from pvae_pyro.errors import InputError

_SHARES = ("gate_probability", "edge_probability", "loading_probability", "escape", "synergy_share")
_AT_LEAST_ONE = ("targets", "cells_per_condition", "controls", "genes", "batches", "responsive")
_POSITIVE = ("saturation", "library_median", "dispersion", "interaction_floor")


@dataclass(frozen=True)
class World:
    """One generative story with every number fixed; an unknown field is a TypeError.

    The symbols are those of the model: gates s, effects w = s * e, graph L, composition m_d and interaction
    eta_dk ~ Normal(0, kappa * h_dk). The defaults are the world of the embedded demo data. Sizes are counts,
    probabilities are shares, other numbers are widths on the scale of the latents or of log expression.

    Raises:
        InputError: a value is out of range, or more combinations are asked for than the targets allow.
    """

    # sizes
    targets: int = 24
    doubles: int = 40
    triples: int = 0
    cells_per_condition: int = 100  # median over the perturbed conditions
    cells_spread: float = 0.3  # sd of the log number of cells
    controls: int = 1500
    genes: int = 300
    batches: int = 3
    # latents
    responsive: int = 10
    background: int = 5
    gate_probability: float = 0.25
    effect_size: float = 1.3  # tau: sd of an effect whose gate is open
    edge_probability: float = 0.15
    edge_size: float = 0.4
    drive: float = 0.25  # sd of the entries of B, background programs acting on responsive latents
    noise_modulation: float = 0.15  # sd over targets of the log noise variance; clipped to +-2 per condition
    escape: float = 0.08  # share of perturbed cells that did not respond
    # combinations
    scale: float = 0.85  # combinations keep this share of the sum of their single effects
    interaction: float = 0.5  # kappa
    interaction_floor: float = 0.3  # h0
    synergy_share: float = 0.0  # share of combinations that do far more than their rule says
    synergy: float = 1.0  # what these add, as a multiple of the sum of their single effects
    # expression
    likelihood: Literal["negative_binomial", "gaussian"] = "negative_binomial"
    loading_probability: float = 0.5  # share of genes that a latent reaches
    loading_size: float = 0.2
    background_loading_size: float = 0.2
    saturation: float | None = None  # None: linear decoder; s: a gene's response a becomes s * tanh(a / s)
    batch_effect: float = 0.1
    level_spread: float = 1.4  # counts: sd of log base levels; gaussian: mean height above the positive floor
    library_median: float = 3000.0
    library_spread: float = 0.4
    dispersion: float = 0.2  # median alpha, count variance = mean + alpha * mean^2
    dispersion_spread: float = 0.5
    noise: float = 0.3  # gaussian: median residual sd of a gene
    noise_spread: float = 0.2

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        for field in dataclasses.fields(self):
            if field.name != "likelihood":
                _check(field.name, getattr(self, field.name), whole=field.type == "int")
        if self.likelihood not in ("negative_binomial", "gaussian"):
            raise InputError(
                f"The likelihood of a simulated screen is 'negative_binomial' or 'gaussian', "
                f"found {self.likelihood!r}; use one of these."
            )
        for order, name in ((2, "doubles"), (3, "triples")):
            wanted, possible = getattr(self, name), math.comb(self.targets, order)
            if wanted > possible:
                raise InputError(
                    f"{wanted} {name} were asked for but {self.targets} targets make only {possible}; "
                    f"ask for fewer {name} or more targets."
                )


def _check(name: str, value: Any, whole: bool) -> None:
    """Refuse a value that no world can have."""
    if name == "saturation" and value is None:
        return
    low, high = int(name in _AT_LEAST_ONE), 1.0 if name in _SHARES else math.inf
    if isinstance(value, Integral if whole else Real):
        number = float(value)
        if math.isfinite(number) and low <= number <= high and (number > 0 or name not in _POSITIVE):
            return
    limits = "a whole number " if whole else ""
    limits += (
        "above 0" if name in _POSITIVE else "between 0 and 1" if name in _SHARES else f"of {low} or more"
    )
    raise InputError(f"The simulation setting {name} must be {limits}, found {value!r}; change it.")


_LINEAR_GAUSSIAN = World(
    targets=40,
    doubles=40,
    cells_spread=0.0,
    controls=1000,
    genes=200,
    batches=1,
    responsive=6,
    background=3,
    effect_size=1.8,
    edge_probability=0.3,
    escape=0.0,
    scale=1.0,
    interaction=0.25,
    likelihood="gaussian",
    loading_size=0.3,
    background_loading_size=0.3,
    level_spread=1.0,
)

PRESETS: dict[str, World] = {
    "default": World(),  # the embedded demo data: counts, batches, escape, sub-additive interacting pairs
    "additive": World(scale=1.0, interaction=0.0, escape=0.0),  # pairs add exactly on the log-rate scale
    "linear-gaussian": _LINEAR_GAUSSIAN,  # the model's own class, with exact condition means
    "scaled": dataclasses.replace(  # composition to be learnt from pairs
        _LINEAR_GAUSSIAN, scale=0.8, interaction=0.4, doubles=60
    ),
    "averaging": dataclasses.replace(  # a pair does the average of its singles
        _LINEAR_GAUSSIAN, scale=0.5, doubles=80
    ),
    "synergy": dataclasses.replace(  # one pair in ten does twice the sum
        _LINEAR_GAUSSIAN, synergy_share=0.1, doubles=80
    ),
    "nonlinear": dataclasses.replace(  # latents add, genes saturate: adding two measured means is wrong
        _LINEAR_GAUSSIAN,
        interaction=0.0,
        saturation=0.8,
        effect_size=3.0,
        gate_probability=0.4,
        loading_size=0.4,
    ),
}


def world(preset: str, **overrides: Any) -> World:
    """The settings of a named world with some fields replaced.

    Raises:
        InputError: no such preset, or a value out of range.
        TypeError: a field that World does not have.
    """
    if preset not in PRESETS:
        raise InputError(f"There is no simulated world {preset!r}; choose one of {', '.join(PRESETS)}.")
    return dataclasses.replace(PRESETS[preset], **overrides)
