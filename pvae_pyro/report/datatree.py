"""Draws of a fit, or of its predictions, as an ArviZ DataTree with named dimensions; `docs/arviz.md` lists the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from arviz_base import from_dict
from numpy.typing import NDArray

from ..errors import InputError
from ..guides import SampledGuide
from ..labels import CONTROL, near, parse_request
from ..prediction import Posterior, predict
from ..prediction.density import log_density
from ..prediction.globals import draw_globals
from ..prediction.mixture import RecipeMixture
from ..prediction.prior import FromPrior
from ..prediction.recipe import Recipe, condition_seed
from ..prediction.sites import SiteDraws, draw_sites

if TYPE_CHECKING:
    from xarray import DataTree

    from ..inference import Fit
    from ..story import Story
    from ..summary import ConditionSummary

Array = NDArray[Any]
_Groups = dict[str, dict[str, Array]]

NOTE = ("draws of a variational posterior, not MCMC: a chain is one run of the optimiser (a restart), so that r_hat, ess and "
        "mcse say whether restarts agree, nothing about a sampler; latents of different chains are different ones")  # fmt: skip
SAMPLED = ("draws of MCMC with the latents of cells integrated out, chosen at random among those kept of all its chains: a chain "
           "here is one fit, so that r_hat, ess and mcse say nothing of the sampler, whose R-hat fit.diagnose() has")  # fmt: skip
STATS = {
    "lp": "log_prior plus log_likelihood of all conditions: density of the drawn globals and of the pseudobulks in this file",
    "log_prior": "log prior density of the drawn globals",
    "log_q": "log density of the drawn globals under the guide; of gates the Bernoulli mass of the hard ones",
}
# plates of the story -> dimensions here; others keep their name, and so do sites
_DIMENSIONS = {"targets": "perturbation", "latents": "latent", "genes": "gene", "edges": "edge", "given_edges": "given_edge",
               "combinations": "combination", "features": "feature", "background_edges": "background_edge"}  # fmt: skip
_EVENTS = {"interaction": "latent", "residual": "gene"}
_DIMS = {
    "y_bulk": ["condition", "gene"], "delta_mean": ["condition", "gene"], "latent_mean": ["condition", "gene"],
    "se": ["condition", "gene"], "control_mean": ["gene"], "w": ["perturbation", "latent"], "graph": ["latent", "latent_source"],
    "design": ["condition", "perturbation"], "inclusion_prob": ["chain", "perturbation", "latent"], "n_cells": ["condition"],
    "is_train": ["condition"], "n_targets": ["condition"], "seen_targets": ["condition"],
}  # fmt: skip


def fit_tree(
    fit: Fit,
    draws: int,
    seed: int,
    conditions: Sequence[str] | None,
    genes: int | Sequence[str] | None,
    predictions: Sequence[str] | Mapping[str, int],
) -> DataTree:
    """See `Fit.to_datatree`."""
    names, columns = _trained(fit, conditions), _fitted_columns(fit, genes)
    draws = -(-draws // len(fit.members)) * len(fit.members)  # as many of every member
    training, cut = fit.training, np.flatnonzero(fit.active)[columns]  # `cut`: of arrays that have all genes
    # control is asked for beside them: deltas are differences from it
    asked = names if CONTROL in names else [*names, CONTROL]
    posterior = predict(fit, asked, draws, None, seed)
    rows = np.array([training.index(name) for name in asked], dtype=np.int64)
    measured = training.mean[np.ix_(rows, cut)]
    parts, control, dims, groups = _parts(posterior), asked.index(CONTROL), dict(_DIMS), _Groups()
    for kind, recipes in (("posterior", parts), ("prior", [_prior(fit, part) for part in parts])):
        latent, bulk = zip(*(_drawn(part, columns) for part in recipes), strict=True)
        sites = [draw_sites(part.guide, len(part.draws), part.seed) for part in recipes]
        deltas = _stack([one[:, : len(names)] - one[:, [control]] for one in latent])
        groups[kind] = _globals(sites, recipes, columns, dims) | {"delta_mean": deltas}
        groups[f"{kind}_predictive"] = {"y_bulk": _stack(bulk)[:, :, : len(names)]}
        if kind == "posterior":
            stats = {"log_prior": _stack([s.log_prior for s in sites]), "log_q": _stack([s.log_q for s in sites])}
    groups["log_likelihood"] = {"y_bulk": _densities(parts, measured, columns)[:, :, : len(names)]}
    groups["sample_stats"] = {"lp": stats["log_prior"] + groups["log_likelihood"]["y_bulk"].sum(-1)} | stats
    groups["observed_data"] = {"y_bulk": measured[: len(names)]}
    rows = rows[: len(names)]
    groups["constant_data"] = {
        "n_cells": training.n_cells[rows],
        "is_train": np.ones(len(rows), dtype=bool),
        "design": training.design[rows],
        "control_mean": measured[control],
        "se": _standard_errors(training, rows, cut),
    }
    inclusion = [part.guide.inclusion() for part in parts]
    if gates := [one.numpy() for one in inclusion if one is not None]:
        groups["constant_data"]["inclusion_prob"] = _stack(gates)
    coords = _coordinates(fit, parts) | {"condition": names, "gene": fit.genes[cut]}
    pred_coords = {"gene": fit.genes[cut]}
    if predictions:
        sizes = predictions if isinstance(predictions, Mapping) else None
        held_out = predict(fit, list(predictions), draws, sizes, seed)
        groups["predictions"] = {"y_bulk": _stack([_drawn(part, columns)[1] for part in _parts(held_out)])}
        groups["predictions_constant_data"] = _constants(held_out)
        pred_coords["condition"] = np.array(held_out.conditions)
    facts = {"model": repr(fit.model), "guide": repr(fit.guide), "fit_seed": fit.seed, "fit_date": fit.date}
    return _tree(groups, dims, coords, pred_coords, posterior, facts)


def posterior_tree(posterior: Posterior, test: ConditionSummary | None, genes: Sequence[str] | None) -> DataTree:
    """See `Posterior.to_datatree`."""
    known = posterior.genes[posterior.active]
    columns = np.arange(len(known)) if genes is None else _find(genes, known)
    if test is not None:
        test = test.restrict(posterior.conditions)
        posterior = replace(posterior, recipe=posterior.recipe.asking(n_cells=test.n_cells))
    parts, groups = _parts(posterior), _Groups()
    latent, bulk = zip(*(_drawn(part, columns) for part in parts), strict=True)
    groups["posterior"] = {"latent_mean": _stack(latent)}
    if test is None:
        groups["predictions"] = {"y_bulk": _stack(bulk)}
        groups["predictions_constant_data"] = _constants(posterior)
    else:
        rows, cut = np.arange(len(test.conditions)), _find(known[columns].tolist(), test.genes)
        groups["posterior_predictive"] = {"y_bulk": _stack(bulk)}
        groups["log_likelihood"] = {"y_bulk": _densities(parts, test.mean[:, cut], columns)}
        groups["observed_data"] = {"y_bulk": test.mean[:, cut]}
        groups["constant_data"] = _constants(posterior) | {"se": _standard_errors(test, rows, cut)}
    coords = {"condition": np.array(posterior.conditions), "gene": known[columns]}
    return _tree(groups, _DIMS, coords, coords, posterior, {})


def _tree(
    groups: _Groups,
    dims: Mapping[str, Any],
    coords: Mapping[str, Any],
    pred_coords: Mapping[str, Any],
    posterior: Posterior,
    facts: Mapping[str, Any],
) -> DataTree:
    """The groups with their attributes; arviz_base sees that the log likelihood of y_bulk has no genes."""
    from .. import __version__

    parts = _parts(posterior)
    note = SAMPLED if isinstance(parts[0].guide, SampledGuide) and parts[0].guide.sampled else NOTE
    library = {"inference_library": "pvae_pyro", "inference_library_version": __version__, "note": note}
    attrs: dict[str, dict[str, Any]] = {group: dict(library) for group in groups}
    attrs["/"] = library | {"seed": parts[0].seed, "scale": posterior.scale, **facts}
    tree = from_dict(groups, coords=coords, dims=dims, pred_coords=pred_coords, pred_dims=dims, attrs=attrs)
    if "sample_stats" in groups:
        for name, text in STATS.items():
            tree["sample_stats"][name].attrs["description"] = text
    return tree


def _globals(
    sites: Sequence[SiteDraws], parts: Sequence[Recipe], columns: Array, dims: dict[str, list[str]]
) -> dict[str, Array]:
    """Sites by name, w and the graph at control, each (chain, draw, ...); the sites' dimensions go to `dims`."""
    out = {}
    for name, plates in sites[0].plates.items():
        own = [_DIMENSIONS.get(plate, plate) or _EVENTS.get(name, f"{name}_{i}") for i, plate in enumerate(plates)]
        values = _stack([one.values[name] for one in sites])
        out[name] = np.take(values, columns, axis=2 + own.index("gene")) if "gene" in own else values
        dims[name] = own
    out["w"] = _stack([np.stack([d.shared["effects"].numpy() for d in part.draws]) for part in parts])
    out["graph"] = _stack([_graphs(part) for part in parts])
    return out


def _graphs(part: Recipe) -> Array:
    """L of control cells, (draws, latents, latents): what latent_source does to latent."""
    story = part.guide.story
    control = torch.zeros_like(story.design[:1])
    shape = (story.n_latents, story.n_latents)
    with torch.no_grad():
        return np.stack([story.edges(d.shared, control)["graph"].reshape(shape).numpy() for d in part.draws])


def _drawn(recipe: Recipe, columns: Array) -> tuple[Array, Array]:
    """Latent mean and measured pseudobulk of some fitted genes, each (draws, conditions, genes) float32."""
    shape = (len(recipe.draws), len(recipe.conditions), len(columns))
    latent, measured = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for chosen, one, other in recipe.blocks():
        latent[:, chosen], measured[:, chosen] = one.numpy()[..., columns], other.numpy()[..., columns]
    return latent, measured


def _densities(parts: Sequence[Recipe], measured: Array, columns: Array) -> Array:
    """Log densities (chain, draw, condition) of measured pseudobulks (conditions, genes)."""
    return _stack([log_density(part, measured, columns) for part in parts])


def _prior(fit: Fit, part: Recipe) -> Recipe:
    """The same conditions with globals drawn from the prior; loadings and other parameters are the fitted ones."""
    story = part.guide.story
    # numbers of its own: draws of prior and posterior must not go together
    seed = condition_seed("", part.seed, "prior")
    with torch.random.fork_rng(devices=[]):
        guide = FromPrior().build(story).eval()
    background = story.model.background
    controls = torch.zeros(1, background), torch.ones(1, background)  # the prior of z_b
    batches = torch.as_tensor(fit.batch_counts, dtype=torch.float32).sum(0)
    drawn = draw_globals(guide, controls, batches, 0, len(part.draws), seed)
    with torch.no_grad():
        moments = story.model.likelihood.moments(story.noise_start, part.library, story.level)
    return replace(part, guide=guide, draws=drawn, moments=moments, seed=seed)


def _parts(posterior: Posterior) -> list[Recipe]:
    """The recipe of each chain; InputError where they have unequal numbers of draws."""
    recipe = posterior.recipe
    parts = list(recipe.parts) if isinstance(recipe, RecipeMixture) else [recipe]
    sizes = [len(part.draws) for part in parts]
    if len(set(sizes)) > 1:
        raise InputError(
            f"the {len(parts)} members of this ensemble gave {', '.join(map(str, sizes))} draws, but chains are equally long; "
            f"predict with a multiple of {len(parts)} draws."
        )
    return parts


def _stack(chains: Sequence[Array]) -> Array:
    """(chain, ...) of arrays of one shape, or padded by nan to the largest: ranks of members may differ."""
    shape = np.max([one.shape for one in chains], axis=0)
    if all(one.shape == tuple(shape) for one in chains):
        return np.stack(chains)
    out = np.full((len(chains), *shape), np.nan, dtype=chains[0].dtype)
    for into, one in zip(out, chains, strict=True):
        into[tuple(slice(n) for n in one.shape)] = one
    return out


def _trained(fit: Fit, conditions: Sequence[str] | None) -> list[str]:
    """Canonical names of trained conditions, by default all that are perturbed."""
    if conditions is None:
        return [name for name in fit.conditions if name != CONTROL]
    names = parse_request(conditions, fit.known_targets)
    if unknown := [name for name in names if name not in fit.conditions]:
        raise InputError(
            f"the condition {unknown[0]!r} was not trained, so that nothing was observed of it; ask for it by predictions."
        )
    if not names:
        raise InputError("no condition was asked for; name at least one that was trained.")
    return names


def _fitted_columns(fit: Fit, genes: int | Sequence[str] | None) -> Array:
    """Which of the fitted genes: all, some by name, or the `genes` that perturbations move most, in the order of the fit."""
    known = fit.genes[fit.active]
    if genes is None:
        return np.arange(len(known))
    if not isinstance(genes, int):
        return _find(genes, known)
    if isinstance(genes, bool) or genes < 1:
        raise InputError(f"the number of genes is {genes}; give a number of at least 1, names, or None for all.")
    mean = fit.training.mean[:, fit.active]
    size = np.square(mean - mean[fit.training.index(CONTROL)]).sum(0)
    return np.sort(np.argsort(-size, kind="stable")[:genes])


def _find(genes: Sequence[str], known: NDArray[np.str_]) -> Array:
    """Places of genes by name; InputError for one that is not there."""
    places = {str(gene): place for place, gene in enumerate(known)}
    if absent := [gene for gene in genes if gene not in places]:
        raise InputError(
            f"the gene {absent[0]!r} is not here or has no count in training cells ({near(absent[0], places)}); correct the name."
        )
    return np.array([places[gene] for gene in dict.fromkeys(genes)], dtype=np.int64)


def _constants(posterior: Posterior) -> dict[str, Array]:
    """What is known of asked-for conditions, each (conditions,)."""
    return {
        "n_cells": np.asarray(posterior.n_cells),
        "is_train": (posterior.recipe.own_batches.sum(-1) > 0).numpy(),
        "n_targets": posterior.n_targets,
        "seen_targets": posterior.seen_targets,
    }


def _standard_errors(summary: ConditionSummary, rows: Any, columns: Array) -> Array:
    """Standard errors of measured means, (conditions, genes); nan where there is one cell."""
    n = summary.n_cells[rows][:, None]
    return np.where(n > 1, np.sqrt(summary.variance[np.ix_(rows, columns)] / n), np.nan)


def _coordinates(fit: Fit, parts: Sequence[Recipe]) -> dict[str, Any]:
    """Names along the dimensions of the sites."""
    story: Story = max((part.guide.story for part in parts), key=lambda s: s.n_latents)
    latents = np.arange(story.n_latents)
    target, source = np.tril_indices(story.n_latents, -1)  # as edges stand, row by row
    return {
        "perturbation": list(fit.targets),
        "latent": latents,
        "latent_source": latents,
        "background": np.arange(story.model.background),
        "edge": [f"{s}->{t}" for s, t in zip(source, target, strict=True)],
        "given_edge": [f"{s}->{t}" for s, t in getattr(story.model.graph, "edges", ())],
        "combination": [fit.conditions[row] for row in story.combinations],
    }
