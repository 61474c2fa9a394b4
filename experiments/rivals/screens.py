"""The two screens, the regimes, and who is trained on what: even doubles tune, odd ones are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import pvae_pyro as pv
from pvae_pyro.evaluation.effects import request
from pvae_pyro.evaluation.scores import parity
from pvae_pyro.inference.shrinkage import shrink

from ..swap.arms import DATA, _norman
from .closed import Known

FOLDS = 5
CELLS, CONTROLS = 150, 4000  # of a condition of the real pseudobulk, and of control: about what the semi-synthetic screen has
ABOVE = 30.0  # added to every gene, because no file holds values below zero; an identity link does not mind
LEAST = 0.3  # share of a gene's sd over singles that is noise at least


@dataclass(frozen=True, eq=False)
class Bench:
    """One screen and its measured means, with the pairs that tune and those that are reported."""

    screen: pv.Screen
    summary: pv.ConditionSummary
    even: tuple[str, ...]
    odd: tuple[str, ...]
    _known: dict[tuple[str, ...], Known] = field(default_factory=dict)

    @classmethod
    def of(cls, screen: pv.Screen) -> Bench:
        pairs = [c for c in screen.conditions if "+" in c]
        even, odd = (tuple(c for c in pairs if parity(c) == which) for which in ("even", "odd"))
        return cls(screen, screen.summary(), even, odd)

    def train(self, pairs: Sequence[str]) -> pv.Screen:
        """Cells of control, singles and these pairs."""
        singles = [c for c in self.screen.conditions if "+" not in c]
        return pv.split_screen(self.screen, [c for c in singles if c != "control"] + list(pairs)).train

    def known(self, pairs: Sequence[str]) -> Known:
        """What may be known with these pairs in training; kept, since every setting of every rival asks for the same."""
        key = tuple(sorted(pairs))
        if key not in self._known:
            cells = self.train(pairs)
            self._known[key] = Known(self.summary.restrict(cells.conditions), cells)
        return self._known[key]

    def asked(self, known: Known, pairs: Sequence[str]) -> NDArray[np.float64]:
        """Doses (pairs, targets) over the training targets."""
        truth = self.summary.restrict(pairs)
        return request(known.effects, truth.design, truth.n_cells, truth.targets).design

    def folds(self) -> list[list[str]]:
        """Five parts of the even pairs, each to be predicted from the others."""
        order = np.random.default_rng(0).permutation(len(self.even))
        return [[self.even[i] for i in order[k::FOLDS]] for k in range(FOLDS)]


@cache
def semi_synthetic() -> Bench:
    return Bench.of(_norman())


@cache
def simulated() -> Bench:
    """Small, for `--smoke` and tests."""
    made = pv.simulate.simulate(seed=0, targets=12, doubles=24, controls=200, cells_per_condition=40, genes=60)
    return Bench.of(pv.Screen.from_anndata(made.adata, "condition", batch_key="batch"))


@cache
def real_pseudobulk(cells: int = CELLS, controls: int = CONTROLS) -> Bench:
    """The real pseudobulk (log1p CPM shifts, as published, not denoised) of the same conditions, as a screen.

    It has no cells. So that whatever reads cells can read it, every condition is given `cells` pseudo-cells, and control
    `controls`, whose mean is its measured one exactly and whose spread is a normal noise, independent between genes, of the sd
    that makes the noise of the mean of `cells` what `noise_of` says. How cells differ otherwise is not in it.
    """
    data = anndata.read_h5ad(DATA / "norman_pseudobulk.h5ad")
    names, shifts = data.obs["condition"].astype(str).to_numpy(), np.asarray(data.X, dtype=float)
    sd = noise_of(shifts[[("+" not in name) for name in names]]) * np.sqrt(cells)
    rng, blocks, labels = np.random.default_rng(0), [], []
    for name, shift in zip(["control", *names], np.vstack([np.zeros(len(sd)), shifts]), strict=True):
        n = controls if name == "control" else cells
        noise = rng.normal(size=(n, len(sd)))
        blocks.append(ABOVE + shift + sd * (noise - noise.mean(axis=0)))
        labels += [name] * n
    obs = pd.DataFrame({"condition": labels}, index=[f"cell {i}" for i in range(len(labels))])
    made = anndata.AnnData(np.vstack(blocks).astype(np.float32), obs, data.var[[]])
    return Bench.of(pv.Screen.from_anndata(made, "condition", scale="normalised"))


def noise_of(singles: NDArray[np.float64], rounds: int = 20) -> NDArray[np.float64]:
    """Sd of the noise of every gene's measured shift (G,): what the directions above the noise leave of the singles (P, G).

    Which directions stand above it depends on the noise itself: begun at the sd of all, the two are found in turn. A gene that
    gets a direction of its own would be told to have no noise and then outweigh all others (a Heywood case of factor
    analysis): at least `LEAST` of its sd is noise.
    """
    sd, n = singles.std(axis=0), len(singles)
    least = LEAST * sd
    for _ in range(rounds):
        found = shrink(singles, np.ones(n), sd)
        left = singles - found.project(singles) @ found.loadings
        sd = np.maximum(np.sqrt((left**2).sum(axis=0) / max(n - found.rank, 1)), least)
    return np.asarray(sd)
