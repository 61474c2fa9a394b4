"""Responsive latents as programs: what moves them, and which genes they move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .matching import Floats, loadings

if TYPE_CHECKING:
    from .fitting import Fit

NO_EFFECT = 1e-6  # control-cell sds


@dataclass(frozen=True, eq=False)
class Programs:
    """Programs of one fit; T targets, K latents, G genes that were fitted.

    effects:   (T, K) posterior mean of w, in sds of control cells along the latent
    inclusion: (T, K) probability of the hard gate; 1 without gates
    loadings:  (K, G) sds of a gene's cells for one control-cell sd of the latent

    The sign of a latent says nothing by itself: each is turned so that the target with the largest effect has a positive one (the
    largest loading, where no target has an effect).
    """

    targets: tuple[str, ...]
    genes: NDArray[np.str_]
    effects: Floats
    inclusion: Floats
    loadings: Floats

    @classmethod
    def of(cls, fit: Fit, draws: int = 200, seed: int = 0) -> Programs:
        """Read off a single fit; InputError for an ensemble, whose members have latents of their own."""
        story, _ = fit.modules()
        unit = story.unit.detach().double().numpy()
        table = fit.effects_table(draws, seed)
        effects, inclusion = (
            table.pivot(index="target", columns="latent", values=name).loc[list(fit.targets)].to_numpy(float)
            for name in ("mean", "inclusion")
        )
        effects, loaded = effects * unit, loadings(fit) / unit[:, None]
        largest = _extreme(effects.T)
        turn = np.where(np.where(np.abs(largest) > NO_EFFECT, largest, _extreme(loaded)) < 0, -1.0, 1.0)
        genes = np.asarray(fit.genes)[fit.active]
        return cls(fit.targets, genes, effects * turn, inclusion, loaded * turn[:, None])

    @property
    def size(self) -> Floats:
        """Root mean square effect of a target on each latent (K,)."""
        return np.asarray(np.sqrt((self.effects**2).mean(axis=0)))

    def strongest_targets(self, latent: int, top: int = 5) -> list[str]:
        """Targets with the largest effects on a latent, largest first."""
        return [self.targets[i] for i in np.argsort(-np.abs(self.effects[:, latent]), kind="stable")[:top]]

    def strongest_genes(self, latent: int, top: int = 5, raised: bool = True) -> list[str]:
        """Genes that the latent raises (or lowers) most, in sds of a gene's cells."""
        signed = self.loadings[latent] if raised else -self.loadings[latent]
        order = np.argsort(-signed, kind="stable")[:top]
        return [str(self.genes[i]) for i in order if signed[i] > 0]

    def table(self, top: int = 5) -> pd.DataFrame:
        """See `Fit.programs_table`."""
        share = self.size**2 / max(float((self.size**2).sum()), 1e-300)
        at = {name: i for i, name in enumerate(self.targets)}
        rows = []
        for k in range(len(self.loadings)):
            named = [f"{t} {self.effects[at[t], k]:+.1f}" for t in self.strongest_targets(k, top)]
            genes = [", ".join(self.strongest_genes(k, top, raised)) for raised in (True, False)]
            rows.append((k, self.size[k], share[k], self.inclusion[:, k].mean(), ", ".join(named), *genes))
        return pd.DataFrame(rows, columns=["latent", "size", "share", "inclusion", "targets", "raised", "lowered"])


def _extreme(rows: Floats) -> Floats:
    """The entry of largest size of each row."""
    return np.asarray(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
