"""What a prior expects of perturbations, before any fit: how far they move genes, through how many latents, and do pairs add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ..labels import CONTROL, canonical, parse_condition
from ..screen import ConditionSummary, Screen
from ..story import PerturbedVAE, checks
from .globals import draw_globals
from .plan import Layout, ScreenPlan
from .prior import Prior, prepare
from .recipe import Recipe, condition_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

ACTIVE = 0.1  # control-cell sds beyond which an effect counts as moving a latent
SIZES = np.union1d(np.geomspace(0.03, 10, 34), [1.0, 3.0])  # sizes of a gene's shift on the log scale
_MOST = 200  # singles, and combinations, that are looked at
_NOTHING = 1e-4  # length of a shift that is rounding
_ROOM = 40_000_000  # shifts that are held at once


@dataclass(frozen=True, eq=False)
class PriorSummary:
    """A prior in numbers. S draws of the globals, shifts of the latent mean from control on the log scale of expression.

    table: a row a quantity, of every draw first: mean, q05 and q95 over draws, and `measured` in the cells (nan without);
    share_above_1 and share_above_3: share of genes whose shift is larger, mean over singles or combinations;
    active_latents: latents that a target moves by more than 0.1 control-cell sd (a closed gate moves none), mean over targets;
    size: length of a single's shift over genes (L2), median over singles; non_additivity: length of a combination's departure
    from the sum of its singles' shifts over the length of that sum (nan if they do nothing), median over combinations.
    `sizes` (S, singles), `non_additivity` (S, combinations), `active` (S, targets): the same one by one; `above_singles` and
    `above_combinations` (S, 36): share of genes beyond each of `SIZES`; `measured`: the same without draws, where measured.
    """

    table: pd.DataFrame
    sizes: Array
    non_additivity: Array
    active: Array
    above_singles: Array
    above_combinations: Array
    measured: dict[str, Array]
    latents: int
    note: str

    def __str__(self) -> str:
        singles, combinations = self.sizes.shape[1], self.non_additivity.shape[1]
        lines = [f"Prior of {singles} singles and {combinations} combinations, {len(self.sizes)} draws; {self.note}."]
        for kind, who in (("singles", "A single"), ("combinations", "A combination")):
            for size in (1, 3):
                row = self._row(f"share_above_{size}_{kind}", 100, " %")
                lines.append(f"{who} shifts {row} of the genes by more than {size} on the log scale.")
        row = self._row("active_latents")
        lines.append(f"A target moves {row} of {self.latents} latents by more than {ACTIVE} control-cell sd.")
        lines.append(f"The median single is {self._row('size')} long (L2 over genes){self._verdict()}.")
        row = self._row("non_additivity", 100, " %")
        lines.append(f"The median combination departs from the sum of its singles by {row} of the length of that sum.")
        return "\n".join(line for line in lines if "nan" not in line)

    def _row(self, name: str, factor: float = 1.0, unit: str = "") -> str:
        mean, low, high, measured = (_written(factor * float(self.table[column][name])) for column in self.table)
        seen = "" if measured == "nan" else f", measured {measured}{unit}"
        if measured == "0" and name in ("size", "non_additivity"):
            seen = ", measured no more than sampling noise"
        return f"{mean}{unit} ({low} to {high} in 90 % of draws{seen})"

    def _verdict(self) -> str:
        mean, measured = float(self.table["mean"]["size"]), float(self.table["measured"]["size"])
        return f": {mean / measured:.2g} times what was measured" if measured > 0 else ""

    def plot(self, path: str | Path | None = None) -> Figure:
        """The same as a figure; with a path, written as PNG."""
        from ..report.plots import save
        from ..report.prior_plot import prior_figure

        figure = prior_figure(self)
        if path is not None:
            save(figure, Path(path))
        return figure


@dataclass(frozen=True, eq=False)
class _Asked:
    """Conditions whose shifts are looked at, by name: control first, and all singles that combinations are made of.

    singles: those that count as such; members: the singles of every combination.
    """

    singles: list[str]
    members: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        every = [CONTROL, *self.singles, *(part for parts in self.members.values() for part in parts), *self.members]
        return list(dict.fromkeys(every))


def summarise_prior(
    model: PerturbedVAE, screen_like: Screen | ScreenPlan, draws: int = 200, seed: int = 0, start: bool = True
) -> PriorSummary:
    """Draw all globals `draws` times and push them to latent means, for singles and combinations of `screen_like`.

    The prior is that of `simulate`, whose cells are those of the first draw of the same seed. At most 200 singles and 200
    combinations are looked at; a screen without combinations gets random pairs of its targets. Measured values, where there
    are cells: lengths from products of two halves of the cells, so that sampling noise does not add to them. For counts, means
    are those at the centre of the noise prior, at which shifts are some per cent longer than under drawn noise.
    Raises InputError as `simulate` does, and for fewer than one draw.
    """
    checks.whole(1, draws=draws)
    prior = prepare(model, screen_like, seed, start)
    asked = _asked(prior.layout, seed)
    found: dict[str, list[Array]] = {}
    for effects, latent in _latent_means(prior, asked, draws, seed):
        single, combined, added = _shifts(latent, asked.names, asked)
        each = {
            "sizes": np.linalg.norm(single, axis=-1),
            "non_additivity": _ratio(np.linalg.norm(combined - added, axis=-1), np.linalg.norm(added, axis=-1)),
            "active": (np.abs(effects) > ACTIVE).sum(-1).astype(float),
            "above_singles": _above(single),
            "above_combinations": _above(combined),
        }
        for name, values in each.items():
            found.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    measured = _measured(screen_like.summary(), prior.active, asked) if start and isinstance(screen_like, Screen) else {}
    story, note = prior.guide.story, prior.note
    if not story.combinations:
        note += "; combinations are pairs of targets, since the screen has none"
    return PriorSummary(_table(arrays, measured), **arrays, measured=measured, latents=story.n_latents, note=note)


def _asked(layout: Layout, seed: int) -> _Asked:
    """Conditions of the layout, or some of them."""
    rng = np.random.default_rng(seed)

    def some(names: list[str]) -> list[str]:
        return names if len(names) <= _MOST else [names[i] for i in np.sort(rng.choice(len(names), _MOST, replace=False))]

    doses = {name: parse_condition(name) for name in layout.conditions}
    singles = some([name for name, named in doses.items() if len(named) == 1])
    combined = some([name for name, named in doses.items() if len(named) >= 2])
    if not combined:
        combined = some([canonical(pair) for pair in combinations(layout.targets, 2)])
    members = {name: [canonical([t], [dose]) for t, dose in parse_condition(name).items()] for name in combined}
    return _Asked(singles or sorted({part for parts in members.values() for part in parts}), members)


@torch.no_grad()
def _latent_means(prior: Prior, asked: _Asked, draws: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Of some draws at a time: effects in control-cell sds (draws, targets, latents), latent means (draws, names, genes)."""
    guide, layout, names = prior.guide, prior.layout, asked.names
    story, background = guide.story, guide.story.model.background
    controls = torch.zeros(1, background), torch.ones(1, background)  # the prior of z_b
    batches = torch.as_tensor(np.bincount(layout.batch, minlength=len(layout.batches)), dtype=torch.float32)
    drawn = draw_globals(guide, controls, batches, 0, draws, seed)
    library = torch.as_tensor(layout.library, dtype=torch.float32)
    doses = [parse_condition(name) for name in names]
    design = torch.tensor([[named.get(target, 0.0) for target in layout.targets] for named in doses])
    trained = {layout.conditions[row]: number for number, row in enumerate(story.combinations)}
    recipe = Recipe(
        guide=guide,
        draws=drawn,
        conditions=tuple(names),
        design=design,
        trained=np.array([trained.get(name, -1) for name in names]),
        n_cells=np.full(len(names), 10**6),
        own_batches=torch.zeros(len(names), len(batches)),
        moments=story.model.likelihood.moments(story.noise_start, library, story.level),
        library=library,
        seed=seed,
    )
    size = max(_ROOM // (len(names) * len(story.spread)), 1)
    for first in range(0, draws, size):
        # a recipe repeats its noise: every part of the draws needs a seed of its own
        some = replace(recipe, draws=drawn[first : first + size], seed=condition_seed(str(first), seed, "prior"))
        latent = torch.cat([block for _, block, _ in some.blocks()], 1)
        effects = torch.stack([d.shared["effects"] for d in some.draws]) * story.unit
        yield effects.double().numpy(), latent.double().numpy()


def _shifts(mean: Array, names: Sequence[str], asked: _Asked) -> tuple[Array, Array, Array]:
    """Shifts from control (.., rows, genes) of singles and of combinations, and the sums of the latters' singles.

    mean (.., names, genes). Combinations that lack a single among the names are left out.
    """
    row = {name: number for number, name in enumerate(names)}
    shift = mean - mean[..., row[CONTROL], None, :]
    known = {name: parts for name, parts in asked.members.items() if all(one in row for one in (name, *parts))}
    added = np.zeros((*shift.shape[:-2], len(known), shift.shape[-1]))
    for number, parts in enumerate(known.values()):
        added[..., number, :] = shift[..., [row[part] for part in parts], :].sum(-2)
    single, combined = ([row[name] for name in chosen if name in row] for chosen in (asked.singles, known))
    return shift[..., single, :], shift[..., combined, :], added


def _above(shift: Array) -> Array:
    """Share of genes beyond each of SIZES, mean over conditions, (.., sizes); shift (.., conditions, genes)."""
    if not shift.shape[-2]:
        return np.full((*shift.shape[:-2], len(SIZES)), np.nan)
    return np.stack([(np.abs(shift) > size).mean((-2, -1)) for size in SIZES], -1)


def _ratio(departure: Array, added: Array) -> Array:
    """Length of departures over that of sums; nan where the singles do nothing, which rounding must not hide."""
    return np.divide(departure, added, out=np.full_like(added, np.nan), where=added > _NOTHING)


def _measured(summary: ConditionSummary, active: NDArray[np.bool_], asked: _Asked) -> dict[str, Array]:
    """The arrays of a summary as the cells have them; conditions of one cell have no halves and are nan.

    A square is the product of two halves' shifts, right on average; its root keeps its sign, so that medians stay right.
    """
    single, combined, _ = _shifts(summary.mean[:, active], summary.conditions, asked)
    halves = _shifts(summary.halves[..., active], summary.conditions, asked)

    def length(half: Array) -> Array:
        square = (half[0] * half[1]).sum(-1)
        return np.sign(square) * np.sqrt(np.abs(square))

    return {
        "sizes": length(halves[0]),
        "non_additivity": _ratio(length(halves[1] - halves[2]), length(halves[2])),
        "above_singles": _above(single),
        "above_combinations": _above(combined),
    }


def _written(value: float) -> str:
    """Three digits of a number; what rounds to nothing at two decimals is said to be less."""
    return "under 0.01" if 0 < value < 0.01 else f"{value:.3g}"


def _table(found: dict[str, Array], measured: dict[str, Array]) -> pd.DataFrame:
    def at(name: str, size: float) -> tuple[Array, float]:
        column = int(np.flatnonzero(size == SIZES)[0])
        return found[name][:, column], float(measured[name][column]) if measured else np.nan

    def middle(name: str) -> tuple[Array, float]:
        each = [_median(draw) for draw in found[name]]
        return np.array(each), max(_median(measured[name]), 0.0) if name in measured else np.nan

    rows = {f"share_above_{size}_{kind}": at(f"above_{kind}", size) for kind in ("singles", "combinations") for size in (1, 3)}
    rows["active_latents"] = (found["active"].mean(1), np.nan)
    rows |= {"size": middle("sizes"), "non_additivity": middle("non_additivity")}
    table = {}
    for name, (draws, seen) in rows.items():
        known = draws[np.isfinite(draws)] if np.isfinite(draws).any() else np.array([np.nan])
        low, high = np.quantile(known, [0.05, 0.95])
        table[name] = {"mean": known.mean(), "q05": low, "q95": high, "measured": seen}
    return pd.DataFrame(table).T


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else np.nan
