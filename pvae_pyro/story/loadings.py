"""What is said of the responsive loadings: genes that a latent may reach, and how well loadings are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import InputError
from . import checks
from .plates import Plates


@dataclass(frozen=True)
class GeneSets:
    """One responsive latent for each set, in their order: W_kg = 0 unless gene g is in set k.

    `sets`: a mapping from name to genes, or pairs of the two. Genes that a screen does not have are passed over.
    Source: the masked layer of SENA (ICLR 2025), there on the encoder's side.
    """

    sets: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        given: Any = self.sets
        pairs = given.items() if isinstance(given, Mapping) else given  # lists, as JSON gives them, are meant the same
        sets = tuple((str(name), tuple(str(gene) for gene in genes)) for name, genes in pairs)
        object.__setattr__(self, "sets", sets)
        if not sets:
            raise InputError("there is no gene set to keep loadings to; give at least one, name and genes.")

    def outside(self, genes: Sequence[str]) -> Tensor:
        """True where a gene is not in a set, (sets, genes). Raises InputError for a set without any of these genes."""
        place = {gene: column for column, gene in enumerate(genes)}
        out = torch.ones(len(self.sets), len(genes), dtype=torch.bool)
        for row, (name, members) in enumerate(self.sets):
            found = [place[gene] for gene in members if gene in place]
            if not found:
                raise InputError(
                    f"no gene of the set {name!r} has a count in the training cells; leave the set out or correct its genes."
                )
            out[row, found] = False
        return out


@dataclass(frozen=True)
class UncertainLoadings:
    """Loadings that are known no better than the measured shifts tell them: the decoder's uncertainty.

    W = weight + turn D (latents, genes), weight learnt as without this part, and
    `loadings` (axes, genes)  D_jg ~ Normal(0, width * sd_jg)

    `turn` and `sd` are fixed, from the warm start (`inference.loading_law`): they are the law of the error of an axis that was
    told from noisy shifts of trained conditions, so that `width` 1 is that closed form and others are for its sensitivity.
    The guide keeps this law: SVI would count the cells behind it once more (learnt spreads fall to 0.7 of it, 1 / sqrt(2)).
    Genes are taken as independent. Adds nothing under the guide `Map`.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        checks.positive(width=self.width)

    def sample(self, plates: Plates, sd: Tensor) -> Tensor:
        """State the site and return D, (axes, genes), of this typical size."""
        infer: Any = {"apart": True}  # a wish that guides read: no joint law with other sites
        with pyro.plate("axes", len(sd), dim=-2), plates.genes:
            return pyro.sample("loadings", dist.Normal(torch.zeros_like(sd), self.width * sd), infer=infer)
