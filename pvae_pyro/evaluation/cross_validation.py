"""Cross-validation over conditions: every fold is a fit of its own, scored on conditions it has never seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import cv_intervals
from pvae_pyro.evaluation.bootstrap import RESAMPLES
from pvae_pyro.evaluation.compare import MINIMUM_DRAWS, Comparison, prediction, singles
from pvae_pyro.evaluation.differences import ordered_strata
from pvae_pyro.evaluation.effects import cell_variance, control_row
from pvae_pyro.evaluation.scores import METRICS, Scores, evaluate, metric_terms
from pvae_pyro.labels import CONTROL
from pvae_pyro.splits import Split, split_screen
from pvae_pyro.summary import find_conditions

if TYPE_CHECKING:
    from pvae_pyro.guides import Amortized, Ensemble
    from pvae_pyro.inference import FitSettings
    from pvae_pyro.screen import Screen
    from pvae_pyro.story import PerturbedVAE

Array = NDArray[np.float64]
Names = tuple[str, ...]
Parts: TypeAlias = "PerturbedVAE | tuple[PerturbedVAE, Amortized | Ensemble | None, FitSettings | None]"

_METHOD = "model"
_log = logging.getLogger("pvae_pyro")


@dataclass(frozen=True, eq=False)
class Fold:
    """One fit: what it was asked for, what it said and how long that took.

    held_out: conditions predicted; training_cells: number of cells fitted to; fit_seconds and predict_seconds:
    wall time; genes (G,); mean and sd (held out, G): the predicted measured pseudobulks, for the held-out
    numbers of cells; measured (held out, G): what was found. fit: the `Fit`, where fits are kept.
    """

    held_out: Names
    training_cells: int
    fit_seconds: float
    predict_seconds: float
    genes: NDArray[np.str_]
    mean: Array
    sd: Array
    measured: Array | None = None
    fit: Any = None


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Scores of every held-out condition, fold by fold.

    rows: fold (from 1), condition, metric, value, n_targets, seen, stratum; a target is seen where the fold
    trained on it alone.
    """

    rows: pd.DataFrame
    folds: tuple[Fold, ...]

    @property
    def seconds(self) -> tuple[float, ...]:
        """Wall time of each fold's fit and predictions."""
        return tuple(fold.fit_seconds + fold.predict_seconds for fold in self.folds)

    @property
    def table(self) -> pd.DataFrame:
        """Mean over conditions and its standard error over conditions: stratum, metric, mean, standard_error, conditions.

        A condition that several folds held out counts once, with its average. The MSE ratio is a ratio of
        sums, its standard error that of the linearised ratio; one condition has no standard error (nan).
        """
        scores = self._scores(_METHOD)
        found = []
        for stratum in ordered_strata(scores):
            part = scores.rows[scores.rows["stratum"] == stratum]
            wide = part.pivot(index="condition", columns=["method", "metric"], values="value")
            for metric in METRICS:
                terms = metric_terms(wide, _METHOD, metric)
                if terms is not None:
                    found.append((stratum, metric, *_ratio(*terms)))
        return pd.DataFrame(found, columns=["stratum", "metric", "mean", "standard_error", "conditions"])

    def compare(
        self,
        other: CrossValidation,
        names: tuple[str, str] = ("this", "other"),
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Comparison:
        """Paired differences from `other`, the reference, condition by condition.

        Raises InputError unless both held out the same conditions in the same folds, or the names are equal.
        """
        if names[0] == names[1]:
            raise InputError(f"Both sides of the comparison are called {names[0]!r}; give two names.")
        folds, others = ([set(fold.held_out) for fold in one.folds] for one in (self, other))
        if folds != others:
            raise InputError(
                "The two cross-validations held out different conditions in their folds; run both on the same splits."
            )
        rows = pd.concat([one._scores(name).rows for one, name in zip((self, other), names, strict=True)])
        return Comparison.of(Scores(rows), names, names[1], resamples=resamples, seed=seed)

    def coverage(self, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """How much of what folds held out lies inside their intervals: a row per stratum, method and level.

        Columns stratum, method, level, coverage (mean over conditions of the share of genes), low, high (95 % bootstrap over
        conditions), conditions, factor. Method "raw": the model's own intervals. "group conformal over pairs", post hoc, for
        combinations: mean +- factor x sd, where a pair's factor is the one that the others ask for
        (`conformal.left_out_factors`; the column has its mean); without the levels that so few pairs do not allow.
        """
        return cv_intervals.coverage(self, resamples, seed)

    def intervals(
        self,
        conditions: Sequence[str],
        level: float = 0.9,
        *,
        n_cells: int | Mapping[str, int] | None = None,
        draws: int = 200,
        seed: int = 0,
    ) -> cv_intervals.PairIntervals:
        """Raw and "CV+ over pairs" intervals of combinations that no fold had; needs `cross_validate(..., keep_fits=True)`.

        n_cells: cells of the pseudobulks, as in `Fit.predict`. draws: of every fold's fit. Genes are those that all folds have.
        CV+ learns from the held-out combinations of the same stratum, which must be exchangeable with those asked for:
        pairs picked for their expected effects are not. Raises InputError for fits that were not kept, conditions that the
        folds know, that are no combinations or of a stratum that no fold held out, and a level outside of 0 to 1.
        """
        return cv_intervals.intervals(self, conditions, level, n_cells, draws, seed)

    def __str__(self) -> str:
        conditions = len(set(self.rows["condition"]))
        seconds = ", ".join(f"{one:.1f}" for one in self.seconds)
        table = self.table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return f"{len(self.folds)} folds, {conditions} conditions held out; seconds per fold: {seconds}.\n{table}"

    def _scores(self, name: str) -> Scores:
        """Scores with one row per condition, stratum and metric, averaged over folds."""
        keys = ["condition", "metric", "n_targets", "seen", "stratum"]
        rows = self.rows.groupby(keys, sort=False, as_index=False)["value"].mean()
        return Scores(rows.assign(method=name))


def condition_folds(
    screen: Screen, folds: int = 5, seed: int = 0, of: str | Sequence[str] = "combinations"
) -> tuple[Names, ...]:
    """Names of the conditions that each fold holds out: a random partition into folds of nearly equal size.

    of: "combinations", "singles" or a list of conditions; the rest of the screen is trained on in every fold.
    The order of the screen does not matter. Names rather than splits, since each split copies its cells;
    `split_screen(screen, hold_out=names)` makes one. Raises InputError for fewer than two folds, more folds
    than conditions, and unknown or repeated names.
    """
    n_targets = dict(zip(screen.conditions, (screen.design != 0).sum(axis=1).tolist(), strict=True))
    if isinstance(of, str):
        if of not in ("combinations", "singles"):
            raise InputError(f"of is {of!r}; it is 'combinations', 'singles' or a list of conditions.")
        names = [name for name, n in n_targets.items() if (n > 1 if of == "combinations" else n == 1)]
    else:
        names = [screen.conditions[place] for place in find_conditions(of, screen.conditions)]
        if len(set(names)) < len(names):
            raise InputError("A condition is listed twice among those to hold out; name each once.")
    if isinstance(folds, bool) or not 2 <= folds <= len(names):
        raise InputError(
            f"{len(names)} conditions cannot be held out in {folds} folds; give a number of folds from 2 to the "
            "number of conditions."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [sorted(names)[place] for place in order]
    return tuple(tuple(sorted(shuffled[fold::folds])) for fold in range(folds))


def cross_validate(
    model_fn: Callable[[], Parts] | PerturbedVAE,
    screen: Screen,
    splits: int | Iterable[Split | Sequence[str]] = 5,
    *,
    settings: FitSettings | None = None,
    guide: Amortized | Ensemble | None = None,
    seed: int = 0,
    draws: int = 200,
    genes: str | int | Path = "all",
    device: str = "auto",
    progress: bool = True,
    keep_fits: bool = False,
) -> CrossValidation:
    """Fit every fold from scratch on its own training cells, predict what it holds out, and score that.

    model_fn: called once a fold, gives a model, or a model, its guide and its settings (None: those given
    here); a PerturbedVAE itself is taken as it is. splits: a number of folds over the combinations
    (`condition_folds`, with this seed), lists of held-out conditions, or `Split`s. Everything that is learnt,
    such as which genes are active, shrinkage and the closed-form start, comes from the fold's training cells;
    so does the choice of genes where ``genes`` is a number (the most variable). draws: posterior draws of the
    predictions. One fold is in memory at a time, unless Splits are given. keep_fits: keep each fold's `Fit`, which
    `CrossValidation.intervals` asks for pairs that no fold had. Raises InputError for splits that
    hold out nothing, control or unknown conditions, before anything is fitted, and whatever `fit` raises.
    """
    from pvae_pyro.inference import fit

    if draws < MINIMUM_DRAWS:
        raise InputError(f"{draws} draws are too few to score intervals; ask for {MINIMUM_DRAWS} or more.")
    asked = _asked(screen, splits, seed)
    rows, folds = [], []
    for number, item in enumerate(asked, start=1):
        split = item if isinstance(item, Split) else split_screen(screen, hold_out=item)
        assert split.held_out is not None  # _asked has seen to that
        chosen = [str(gene) for gene in split.train.choose_genes(genes)]
        training, held_out = split.train.select_genes(chosen), split.held_out.select_genes(chosen)
        _log.info("Fold %d of %d: %d conditions are held out.", number, len(asked), len(held_out.conditions))
        model, own_guide, own_settings = _parts(model_fn)
        begin = time.perf_counter()
        fitted = fit(
            model,
            training,
            guide=own_guide or guide,
            settings=own_settings or settings,
            seed=seed,
            device=device,
            progress=progress,
            known_targets=held_out.targets,
        )
        middle = time.perf_counter()
        truth = held_out.summary(seed)
        n_cells = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
        posterior = fitted.predict(truth.conditions, draws=draws, n_cells=n_cells, seed=seed)
        predicted = prediction(posterior, np.asarray(truth.genes), "The prediction")
        end = time.perf_counter()
        known, row = fitted.training, control_row(fitted.training)
        control = known.mean[row], known.variance[row], int(known.n_cells[row])
        scores = evaluate(
            truth,
            {_METHOD: predicted},
            control,
            singles(known),
            np.sqrt(cell_variance(known)),
            training=known,
        )
        own = scores.rows[scores.rows["method"] == _METHOD].drop(columns="method")  # without the floors
        rows.append(own.assign(fold=number))
        assert predicted.draws is not None
        folds.append(
            Fold(
                held_out=tuple(truth.conditions),
                training_cells=training.n_cells,
                fit_seconds=middle - begin,
                predict_seconds=end - middle,
                genes=np.asarray(truth.genes),
                mean=np.asarray(predicted.mean, float),
                sd=predicted.draws.std(axis=0, ddof=1, dtype=np.float64),
                measured=np.asarray(truth.mean, float),
                fit=fitted if keep_fits else None,
            )
        )
    table = pd.concat(rows, ignore_index=True)
    columns = ["fold", "condition", "metric", "value", "n_targets", "seen", "stratum"]
    return CrossValidation(table[columns], tuple(folds))


def _parts(
    model_fn: Callable[[], Parts] | PerturbedVAE,
) -> tuple[PerturbedVAE, Amortized | Ensemble | None, FitSettings | None]:
    """A model with the guide and settings that come with it."""
    made = model_fn() if callable(model_fn) else model_fn
    return made if isinstance(made, tuple) else (made, None, None)


def _asked(screen: Screen, splits: int | Iterable[Split | Sequence[str]], seed: int) -> list[Split | Names]:
    """What each fold holds out, checked before the first fit."""
    if isinstance(splits, int):
        return list(condition_folds(screen, splits, seed))
    asked: list[Split | Names] = []
    for item in splits:
        if isinstance(item, str):
            raise InputError(
                f"A fold is a list of held-out conditions, but {item!r} is one name; give lists."
            )
        if isinstance(item, Split):
            names = () if item.held_out is None else item.held_out.conditions
            asked.append(item)
        else:
            names = tuple(screen.conditions[place] for place in find_conditions(item, screen.conditions))
            asked.append(names)
        if not names or CONTROL in names:
            what = "nothing" if not names else "control, which every fold trains on"
            raise InputError(f"Fold {len(asked)} holds out {what}; give it perturbed conditions to hold out.")
    if not asked:
        raise InputError("There is no fold to fit; give a number of folds, or what each fold holds out.")
    return asked


def _ratio(above: Array, below: Array) -> tuple[float, float, int]:
    """Ratio of sums, its standard error over conditions, and the number of conditions."""
    above, below = above[below != 0], below[below != 0]
    count, total = len(below), float(below.sum())
    if total <= 0:
        return float("nan"), float("nan"), count
    ratio = float(above.sum()) / total
    if count < 2:
        return ratio, float("nan"), count
    residuals = above - ratio * below
    return ratio, float(np.sqrt(count / (count - 1) * (residuals**2).sum())) / total, count
