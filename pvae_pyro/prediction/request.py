"""`fit.predict`: from names of conditions to a Posterior."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..guides.ensemble import member_seed
from ..inference.fitting import Fit
from ..labels import CONTROL, parse_condition, parse_request
from ..story import Additive
from .globals import draw_globals
from .mixture import RecipeMixture
from .posterior import Posterior
from .recipe import Recipe

log = logging.getLogger("pvae_pyro")


def predict(
    fit: Fit, conditions: Sequence[str], draws: int, n_cells: int | Mapping[str, int] | None, seed: int
) -> Posterior:
    """See `Fit.predict`."""
    if not isinstance(draws, int) or draws < 1:
        raise InputError(f"draws must be a whole number of at least 1, but {draws!r} was given.")
    if seed < 0:
        raise InputError(f"seed must not be negative, but {seed} was given.")
    if not conditions:
        raise InputError("no condition was asked for; name at least one, for example 'A+B'.")
    names = parse_request(conditions, fit.known_targets)
    doses = [parse_condition(name) for name in names]
    _refuse_new(fit, names, doses)
    new = sorted({t for d in doses for t in d} - set(fit.targets))
    if new:
        log.warning(
            "%d target(s) were never trained and are drawn from the effect prior: %s.",
            len(new),
            ", ".join(new),
        )
    # new targets follow the trained ones in an order of all that could be asked for, so that their draws do not depend on
    # which others are asked for beside them
    columns = (
        [*fit.targets, *(t for t in fit.known_targets if t not in fit.targets)] if new else list(fit.targets)
    )
    design = torch.zeros(len(names), len(columns))
    for i, d in enumerate(doses):
        for target, dose in d.items():
            design[i, columns.index(target)] = dose
    counts = _cell_numbers(fit, names, n_cells)
    members = enumerate(zip(fit.members, _shares(draws, len(fit.members)), strict=True))
    recipes = tuple(
        _recipe(member, names, design, counts, n, member_seed(seed, i)) for i, (member, n) in members if n
    )
    recipe = recipes[0] if len(recipes) == 1 else RecipeMixture(recipes)
    composition = fit.model.composition
    return Posterior(
        recipe=recipe,
        genes=fit.genes,
        active=fit.active,
        scale="mean over cells of log1p(counts per 10,000)"
        if fit.scale == "counts"
        else "mean over cells of the input's own normalised values",
        n_targets=np.array([len(d) for d in doses], dtype=np.int64),
        seen_targets=np.array([sum(t in fit.targets for t in d) for d in doses], dtype=np.int64),
        composition_is_additive=isinstance(composition, Additive)
        and composition.scale == 1
        and composition.scale_spread == 0,
        targets=fit.known_targets,
    )


def _refuse_new(fit: Fit, names: Sequence[str], doses: Sequence[Mapping[str, float]]) -> None:
    """Raise InputError for a combination that was not trained, where the composition cannot make one of its targets."""
    if getattr(fit.model.composition, "predicts_new", True):
        return
    for name, d in zip(names, doses, strict=True):
        if len(d) > 1 and name not in fit.conditions:
            raise InputError(
                f"{name!r} was not trained, and this model gives each condition an effect of its own, so that it cannot compose "
                "any; train it, or choose a composition that adds effects (svae_plus(compose=True) does)."
            )


def _shares(draws: int, members: int) -> list[int]:
    """How many of the draws each member gives: equal numbers, and one more of the first ones where they do not divide."""
    return [draws // members + (i < draws % members) for i in range(members)]


def _recipe(
    fit: Fit, names: Sequence[str], design: Tensor, counts: NDArray[np.int64], draws: int, seed: int
) -> Recipe:
    """What one run of the optimiser predicts; `design` (conditions, targets) may have new targets after the trained ones."""
    story, guide = fit.modules()
    loc, scale = fit.controls.chunk(2, -1)
    batch_counts = torch.as_tensor(fit.batch_counts, dtype=loc.dtype)
    n_new = design.shape[1] - len(fit.targets)
    globals_ = draw_globals(guide, (loc, scale), batch_counts.sum(0), n_new, draws, seed)
    trained_rows = {fit.conditions[row]: i for i, row in enumerate(story.combinations)}
    library = torch.as_tensor(fit.library)
    with torch.no_grad():
        centre = guide.family.centre()["noise"].double()
        moments = fit.model.likelihood.moments(centre.to(loc.dtype), library, story.level)
    # a trained condition is predicted for its own batches, a new one for the screen's
    own = torch.stack(
        [
            batch_counts[fit.conditions.index(n)]
            if n in fit.conditions
            else torch.zeros_like(batch_counts[0])
            for n in names
        ]
    )
    trained = np.array([trained_rows.get(n, -1) for n in names], dtype=np.int64)
    return Recipe(guide, globals_, tuple(names), design, trained, counts, own, moments, library, seed)


def _cell_numbers(
    fit: Fit, names: Sequence[str], n_cells: int | Mapping[str, int] | None
) -> NDArray[np.int64]:
    summary = fit.training
    own = dict(zip(summary.conditions, summary.n_cells.tolist(), strict=True))
    median = int(np.median([n for name, n in own.items() if name != CONTROL]))
    if n_cells is None:
        counts = [own.get(name, median) for name in names]
    elif isinstance(n_cells, Mapping):
        given = {parse_request([k], fit.known_targets)[0]: v for k, v in n_cells.items()}
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(
                f"n_cells does not say how many cells {missing[0]!r} has; give every asked condition a number."
            )
        counts = [given[name] for name in names]
    else:
        counts = [n_cells] * len(names)
    for name, n in zip(names, counts, strict=True):
        if int(n) != n or n < 1:
            raise InputError(f"n_cells of {name!r} must be a whole number of at least 1, but {n} was given.")
    return np.asarray(counts, dtype=np.int64)
