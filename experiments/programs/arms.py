"""The arms: eight responsive latents, four fits of a screen; named programs, agreement of the fits, edges, known biology."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import pvae_pyro as pv
from pvae_pyro.inference.programs import Programs
from pvae_pyro.screen import CONTROL

from ..probe.arms import screen_of
from ..run_arms import Rows
from . import stability
from .biology import (
    FAMILIES,
    INTERFERON,
    NEXT_TO_IT,
    STATISTICS,
    against_random_groups,
    rank_of_neighbour,
    shared_program,
)

LATENTS, FITS, NAMED, DRAWS = 8, 4, 6, 100
ALL = 30  # of so few targets all are written, for the figure


def run(
    name: str, model: pv.PerturbedVAE, guide: pv.Ensemble, settings: pv.FitSettings, seed: int, own_genes: bool = True
) -> Rows:
    """Four fits as an ensemble: the first is the plain fit with this seed, whose programs are named.

    `own_genes`: whether the transcripts of the targets are among the genes.
    """
    screen = screen_of(name)
    if not own_genes:
        screen = screen.select_genes([str(g) for g in screen.genes if str(g) not in screen.targets])
    fit = pv.fit(model, screen, guide=guide, settings=settings, seed=seed, progress=False)
    programs = [Programs.of(one, DRAWS) for one in fit.members]
    rows = named(programs[0]) + stability.rows(programs) + edges(fit)
    for i, one in enumerate(programs):
        rows += biology(one.effects, one.inclusion, one.targets, f"fit {i}")
    start = Programs.of(fit.members[0].at_start(), DRAWS)
    rows += biology(start.effects, start.inclusion, start.targets, "warm start")
    return rows + measured(fit)


def named(programs: Programs) -> Rows:
    """Size and strongest targets and genes of each latent; one_sign: share of targets that move it the same way, which is
    near one where the latent is what the control cells of the screen have apart, noise of their mean included."""
    rows: Rows = []
    share = programs.size**2 / (programs.size**2).sum()
    for k, size in enumerate(programs.size):
        positive = float((programs.effects[:, k] > 0).mean())
        values = {"size": float(size), "share": float(share[k]), "inclusion": float(programs.inclusion[:, k].mean()),
                  "one_sign": max(positive, 1 - positive)}  # fmt: skip
        rows += [(f"latent {k}", metric, value) for metric, value in values.items()]
        for target in programs.strongest_targets(k, len(programs.targets) if len(programs.targets) <= ALL else NAMED):
            i = programs.targets.index(target)
            rows += [(f"latent {k}, target {target}", "effect", float(programs.effects[i, k])),
                     (f"latent {k}, target {target}", "inclusion", float(programs.inclusion[i, k]))]  # fmt: skip
        genes = programs.strongest_genes(k, NAMED) + programs.strongest_genes(k, NAMED, raised=False)
        at = {str(gene): g for g, gene in enumerate(programs.genes)}
        rows += [(f"latent {k}, gene {gene}", "loading", float(programs.loadings[k, at[gene]])) for gene in genes]
    return rows


def edges(fit: pv.Fit) -> Rows:
    """Every edge that the order allows, and what the fits say of it together."""
    table = pv.agreeing_edges(fit, DRAWS)
    rows: Rows = []
    for edge in table.to_dict("records"):
        what = f"edge {edge['source']}->{edge['target']}"
        rows += [(what, key, float(edge[key])) for key in ("probability", "mean", "sd", "match", "fits", "identified")]
    first = fit.members[0].edges_table(DRAWS)["probability"]
    counts = {"possible": len(table), "identified": table["identified"].sum()}
    counts |= {f"above {least} in the first fit": (first > least).sum() for least in (0.5, 0.9)}
    return rows + [("edges", metric, float(n)) for metric, n in counts.items()]


def biology(effects: np.ndarray, inclusion: np.ndarray | None, targets: tuple[str, ...], whose: str) -> Rows:
    """The tests of known groups on effects (targets, features); `inclusion` None where features are genes, not latents."""
    known = {"interferon": INTERFERON} if set(INTERFERON) <= set(targets) else FAMILIES
    rows: Rows = []
    for name, group in known.items():
        members = [targets.index(t) for t in group if t in targets]
        if len(members) < 2:
            continue
        for statistic in STATISTICS if inclusion is not None else ("cosine",):
            value, median, p = against_random_groups(effects, members, statistic)
            rows += [(f"{name}, {whose}", statistic, value), (f"{name}, {whose}", f"{statistic}, random groups", median),
                     (f"{name}, {whose}", f"{statistic}, p", p)]  # fmt: skip
        if inclusion is not None:
            rows += [(f"{name}, {whose}", key, value) for key, value in shared_program(effects, inclusion, members).items()]
        if name == "interferon":
            rank = rank_of_neighbour(effects, members, targets.index(NEXT_TO_IT))
            rows.append((f"{name}, {whose}", f"rank of {NEXT_TO_IT}", float(rank)))
    return rows


def measured(fit: pv.Fit) -> Rows:
    """The rival that needs no model: the same cosines of measured shifts from control, in sds of a gene's control cells."""
    summary, control = fit.training, fit.training.index(CONTROL)
    sd = np.sqrt(np.maximum(summary.variance[control], 1e-3))
    shifts = (summary.mean[[summary.index(t) for t in fit.targets]] - summary.mean[control]) / sd
    return biology(shifts, None, fit.targets, "measured shifts")


def arms(smoke: bool = False) -> dict[str, Callable[[int], Rows]]:
    """Every arm by name; `smoke` shortens training, takes two fits and adds a simulated screen, where there are no files."""
    settings, fits = (pv.FitSettings(epochs=1), 2) if smoke else (pv.FitSettings(), FITS)
    model, again = pv.PerturbedVAE(responsive=LATENTS), pv.Ensemble(n=fits)
    out = {}
    for name in ("papalexi", "norman", *(["simulated"] if smoke else [])):
        for how, guide in (("restarts", again), ("resampled cells", pv.Ensemble(n=fits, resample=True))):
            out[f"{name} {how}"] = partial(run, name, model, guide, settings)
    out["papalexi without the targets' own genes"] = partial(run, "papalexi", model, again, settings, own_genes=False)
    # is it the prior of 0.05 that keeps edges away?
    likely = model.replace(graph=pv.CausalGraph(density=0.5))
    out["papalexi edges likely a priori"] = partial(run, "papalexi", likely, again, settings)
    return out
