"""Inclusion probabilities: what null perturbations get, and whether discoveries on simulated truth, of gates and of edges, are
as many as they claim."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from anndata import AnnData, read_h5ad

import pvae_pyro as pv
from pvae_pyro.evaluation.edges import bayesian_fdr, score_edges
from pvae_pyro.evaluation.interactions import average_precision

from ..run_arms import Rows
from ..swap.arms import DATA

NULLS, CELLS = 12, 150
PRIORS = {"": pv.SpikeSlab(), ", no activity": pv.SpikeSlab(activity_strength=0)}
FRESH = {"null, Papalexi": (6, 7, 8), "null, semi-synthetic Norman": (2,)}  # splits first seen when everything was fixed
SCREENS = {
    "Papalexi": ("papalexi_cells.h5ad", "target", "non-targeting", "replicate"),
    "semi-synthetic Norman": ("norman_semisynthetic.h5ad", "guide_ids", "", "gemgroup"),
}


def with_nulls(adata: AnnData, key: str, control: str, seed: int) -> AnnData:
    """The screen's controls and singles, `NULLS` groups of controls renamed as if something had been done to them."""
    out = adata[[("," not in str(one)) and ("+" not in str(one)) for one in adata.obs[key]]].copy()
    labels = out.obs[key].astype(str).to_numpy()
    controls = np.random.default_rng(seed).permutation(np.flatnonzero(labels == control))
    size = min(CELLS, len(controls) // (2 * NULLS))  # at least half of the controls stay controls
    for i in range(NULLS):
        labels[controls[i * size : (i + 1) * size]] = f"NULL{i:02d}"
    out.obs[key] = labels
    return out


def null(
    file: str, key: str, control: str, batch: str, effects: pv.SpikeSlab, settings: pv.FitSettings, seed: int
) -> Rows:
    """Inclusion probabilities of the gates of null perturbations, beside those of the real ones."""
    adata = with_nulls(read_h5ad(Path(DATA) / file), key, control, seed)
    screen = pv.Screen.from_anndata(adata, key, batch_key=batch, control_label=control)
    fit = pv.fit(pv.PerturbedVAE(effects=effects), screen, settings=settings, seed=seed, progress=False)
    table = fit.effects_table(draws=2)
    is_null = table["target"].str.startswith("NULL")
    rows: Rows = []
    for name, part in (("null perturbations", table[is_null]), ("real perturbations", table[~is_null])):
        p = part["inclusion"]
        rows += [(name, "share_above_half", float((p > 0.5).mean())), (name, "median", float(p.median())),
                 (name, "largest", float(p.max())), (name, "mean", float(p.mean()))]  # fmt: skip
    return rows


def truth(effects: pv.SpikeSlab, settings: pv.FitSettings, seed: int) -> Rows:
    """Simulated linear-Gaussian world: does a target move a *latent* that it really moves? Latents matched by their loadings."""
    simulated = pv.simulate.simulate("linear-gaussian", seed=seed, doubles=0, edge_probability=0.0, drive=0.0)
    screen = pv.Screen.from_anndata(simulated.adata, "condition", batch_key="batch")
    model = pv.PerturbedVAE(likelihood=pv.Gaussian(link="identity"), responsive=6, effects=effects)
    fit = pv.fit(model, screen, settings=settings, seed=seed, progress=False)
    known = simulated.truth
    a, b = known.loadings_responsive.T, fit.state["story.decoder.responsive"].numpy()
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    match = np.abs(a @ b.T).argmax(0)  # of every fitted latent the true one
    rows_of = [known.targets.index(t) for t in fit.targets]
    open_ = known.gates[rows_of][:, match]
    p = fit.effects_table(draws=2).pivot(index="target", columns="latent", values="inclusion").loc[list(fit.targets)].to_numpy()
    rows: Rows = [("simulated", "prevalence", float(open_.mean())),
                  ("simulated", "auprc", average_precision(p.ravel(), open_.ravel())),
                  ("simulated", "matched_cosine", float(np.abs(a @ b.T).max(0).mean())),
                  ("simulated", "brier", float(((p - open_) ** 2).mean()))]  # fmt: skip
    for one in bayesian_fdr(p, open_).itertuples():
        rows += [(f"Bayesian FDR {one.alpha:g}", metric, float(getattr(one, metric))) for metric in ("realised", "power")]
    return rows


def edges(settings: pv.FitSettings, seed: int) -> Rows:
    """The same world with its graph: are edges between latents, matched by their loadings, those that are there?"""
    simulated = pv.simulate.simulate("linear-gaussian", seed=seed, doubles=0)
    screen = pv.Screen.from_anndata(simulated.adata, "condition")
    model = pv.PerturbedVAE(likelihood=pv.Gaussian(link="identity"), responsive=6)
    fit = pv.fit(model, screen, settings=settings, seed=seed, progress=False)
    known = simulated.truth
    return [("edges", metric, value) for metric, value in score_edges(fit, known.graph, known.loadings_responsive.T).items()]


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, nothing else."""
    settings = pv.FitSettings(epochs=1) if smoke else pv.FitSettings()
    out: dict[str, Callable[[int], Rows]] = {}
    for name, effects in PRIORS.items():
        out[f"simulated{name}"] = partial(truth, effects, settings)
        for screen, where in SCREENS.items():
            out[f"null, {screen}{name}"] = partial(null, *where, effects, settings)
    out["edges, simulated"] = partial(edges, settings)
    return out


def seeds_of(arm: str) -> tuple[int, ...]:
    """Three screens each, of the large one a single split of its controls; of the default as many again (see README); ten
    graphs, since each has few edges."""
    if arm.startswith("edges"):
        return tuple(range(10))
    return ((0,) if "Norman" in arm else (0, 1, 2)) + FRESH.get(arm, ())
