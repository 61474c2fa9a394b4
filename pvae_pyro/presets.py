"""Named configurations: this model and those it is compared with, as choices of the same parts.

    preset = pv.presets.sams_vae()
    fit = preset.fit(split.train, seed=0)        # or pv.fit(preset.model, split.train, guide=..., settings=...)

So that differences are those of assumptions and not of code, all share what is no assumption of theirs: the linear decoder with
the likelihood's link (the originals have multi-layer decoders), batch effects in the decoder, the amortized guide of the
cells, whose q(z_r | x, u) is centred on the prior under the drawn effects (design 3.3), and the loop. Symbols as in the
story: z_b background, z_r responsive, w_p effect of target p, u doses. B is left out where the original has no such block.

Rivals start at random, as published: levels and noise are those of the cells, all else is drawn. `preset.with_our_start()` gives
them the closed-form start, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import InputError
from .guides import Amortized, Map
from .inference import Fit, FitSettings, fit
from .screen import Screen
from .story import (
    MMD,
    Additive,
    CausalGraph,
    Interaction,
    NoAlignment,
    NoGraph,
    NormalEffects,
    PerturbedVAE,
    SpikeSlab,
)
from .story.composition import Separate
from .story.loadings import GeneSets

FROM_RANDOM = FitSettings(warm_start=False, learning_rate=3e-3, loadings_rate=1.0)
OFF = Interaction(width=0.0, width_spread=0.0, stretch=0.0, outside=0.0, surprise_spread=0.0)
OWN = Interaction(width=1.0, width_spread=0.25, stretch=0.0, outside=0.0, surprise_spread=0.0)
LATENTS = 30


@dataclass(frozen=True)
class Preset:
    """What `pv.fit` is given: model, guide and settings."""

    model: PerturbedVAE
    guide: Amortized = field(default_factory=Amortized)
    settings: FitSettings = FROM_RANDOM

    def fit(self, screen: Screen, **options: Any) -> Fit:
        """`pv.fit` of this preset; options are those of `pv.fit` but guide and settings."""
        return fit(self.model, screen, guide=self.guide, settings=self.settings, **options)

    def with_our_start(self) -> Preset:
        """The same assumptions from the closed-form start, which picks the number of responsive latents, with our settings.

        Raises InputError for gene sets, which that start does not know.
        """
        if isinstance(self.model.loadings, GeneSets):
            raise InputError("the closed-form start knows no gene sets, so that this preset starts at random only.")
        return replace(self, model=self.model.replace(responsive=None), settings=FitSettings())


def perturbed_vae(**parts: Any) -> Preset:
    """Our default (arXiv 2605.19343): z_r = L z_r + B z_b + m_d + eps, m_d composed and saturating, plus an interaction draw.

    Differs from the paper: closed-form start, Bayesian effects, composition, interaction, centroid alignment, z_r for the site.
    `parts` as `PerturbedVAE` has them.
    """
    return Preset(PerturbedVAE(**parts), settings=FitSettings())


def discrepancy_vae(latents: int = LATENTS, nonzero: float = 1.0) -> Preset:
    """Discrepancy-VAE (arXiv 2307.06250): z_r = (I - G)^{-1} (eps + sum_p u_p w_p), G strictly triangular, MMD alignment.

    Each target moves few latents of a causal graph. Here by spike-and-slab gates of which `nonzero` per target are expected to
    be open; there by a softmax over latents. The MMD here compares the backgrounds of perturbed and control cells, there
    generated and measured cells; G has a spike-and-slab prior instead of an L1 penalty; cells are not made from control cells
    but from the prior of eps.
    """
    effects = SpikeSlab(inclusion=_share(nonzero, latents), strength=20.0, activity_strength=0)
    return Preset(_additive(latents, effects=effects, graph=CausalGraph(), alignment=MMD()))


def sena(sets: Mapping[str, Sequence[str]] | GeneSets, nonzero: float = 1.0) -> Preset:
    """SENA-discrepancy-VAE (ICLR 2025): `discrepancy_vae` with one latent for each gene set, which reaches its genes only.

    W_kg = 0 for genes outside of set k (its off-pathway weight lambda is 0). There the first layer of the encoder is masked, here
    the loadings, so that "a latent is a pathway" holds for what is predicted. Genes in no set are reached by no perturbation.
    """
    loadings = sets if isinstance(sets, GeneSets) else GeneSets(tuple((k, tuple(v)) for k, v in sets.items()))
    base = discrepancy_vae(max(len(loadings.sets), 1), min(nonzero, 0.5 * len(loadings.sets)))
    return replace(base, model=base.model.replace(responsive=None, loadings=loadings))


def svae_plus(latents: int = LATENTS, nonzero: float = 2.0, compose: bool = False) -> Preset:
    """sVAE+ (arXiv 2211.03553): z_r | condition a ~ Normal(gate_a * mu_a, I), the sparse mechanism shift; point estimates of mu.

    Every condition has gates and means of its own, so that the model cannot compose: a combination that was not trained is
    refused. `compose=True` adds the shifts of its targets, which is not in the paper. A trained combination is one more
    condition, its shift dense. Beta prior of the share of open gates, as there.
    """
    effects = SpikeSlab(inclusion=_share(nonzero, latents), strength=float(latents), activity_strength=0)
    model = _additive(latents, effects=effects)
    if not compose:
        model = model.replace(composition=Separate(predicts_new=False), interaction=OWN)
    return Preset(model, guide=Map())


def sams_vae(latents: int = LATENTS, nonzero: float = 2.0) -> Preset:
    """SAMS-VAE (arXiv 2311.02794): z_r = eps + sum_p u_p (M_p * E_p), E ~ Normal(0, 1), M ~ Bernoulli(nonzero / latents).

    Exactly additive in the latents in every draw; no graph, no interaction, v(u) = 1. There pi = 0.01 of 200 latents. The rate of
    the gates is that of a Beta so narrow that it is fixed. There the likelihood is negative binomial: `model.replace` swaps it.
    """
    effects = SpikeSlab(inclusion=_share(nonzero, latents), strength=1e4, activity_strength=0)
    return Preset(_additive(latents, effects=effects))


def cpa(latents: int = LATENTS) -> Preset:
    """CPA (theislab/cpa): z_r = eps + sum_p f(u_p) w_p with dense embeddings w, and a basal state that does not tell p.

    Here w_p ~ Normal(0, tau), f is the identity, and the adversary that takes the perturbation out of the basal state is an MMD
    penalty on q(z_b | x). There embeddings are point estimates without a prior.
    """
    return Preset(_additive(latents, effects=NormalEffects(), alignment=MMD()))


def conditional_vae(latents: int = LATENTS) -> Preset:
    """A plain conditional VAE with a label for each condition: z_r = eps + c_d, c_d a dense embedding of the condition.

    A combination never trained is a label never seen: its embedding is drawn from the prior, so that its mean is that of
    control, whatever its targets do alone. With a multi-hot label and a linear decoder it would be `cpa` without the penalty.
    """
    model = _additive(latents, effects=NormalEffects())
    return Preset(model.replace(composition=Separate(), interaction=OWN))


def _additive(latents: int, **parts: Any) -> PerturbedVAE:
    """Latent shifts that add exactly, with no graph, interaction, noise modulation, coupling or alignment but in `parts`."""
    base = PerturbedVAE(
        responsive=latents, composition=Additive(), interaction=OFF, graph=NoGraph(), alignment=NoAlignment(),
        variance_spread=0.0, coupling=0.0,
    )  # fmt: skip
    return base.replace(**parts)


def _share(nonzero: float, latents: int) -> float:
    if not 0 < nonzero < latents:
        raise InputError(f"nonzero must lie between 0 and the number of latents, {latents}, but {nonzero} was given.")
    return nonzero / latents
