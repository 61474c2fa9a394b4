"""`compare({"name": fit, ...}, test)`: fits on conditions none of them saw, as paired differences in proper scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.bootstrap import RESAMPLES
from pvae_pyro.evaluation.differences import (
    BATCHES,
    difference_table,
    draw_errors,
    markdown_tables,
    sentences,
)
from pvae_pyro.evaluation.effects import cell_variance, control_row
from pvae_pyro.evaluation.scores import PERFECT, REPLICATE, Scores, evaluate
from pvae_pyro.labels import listing
from pvae_pyro.summary import ConditionSummary

if TYPE_CHECKING:
    from pvae_pyro.screen import Screen

MINIMUM_DRAWS = 20
READING = (
    "Differences are the method's score minus the reference's on the same conditions; standard errors and "
    "intervals come from resampling conditions, which weigh equally and are the unit of replication. Intervals "
    "of fits also hold the noise of their posterior draws, measured on five batches of them.",
    "Log score (nats per gene) and delta Pearson: larger is better. CRPS, energy score and L2: smaller is "
    "better. Coverage should be 0.90; better is what is nearer to that.",
    "No difference beyond noise: the 95 % interval holds zero, or the difference is below 0.5 % of the "
    "reference (0.005 in log score and coverage), too small to matter. It does not say that the methods are "
    "equal. Of metrics that truly do not differ one in twenty is called different.",
    "Below 20 conditions intervals are standard errors times Student's t.",
)
_BATCH = "\x1f"  # between the name of a fit and the number of a batch of its draws


class PosteriorLike(Protocol):
    """The part of a Posterior that a comparison reads."""

    @property
    def genes(self) -> NDArray[np.str_]: ...
    def draws(self) -> NDArray[np.floating[Any]]:
        """Joint draws of the measured pseudobulks, (S, C, G), in the order asked."""


class FitLike(Protocol):
    """The part of a Fit that a comparison reads; ``known_targets`` may be there, too."""

    @property
    def training(self) -> ConditionSummary: ...
    @property
    def genes(self) -> NDArray[np.str_]: ...
    @property
    def conditions(self) -> tuple[str, ...]: ...
    @property
    def scale(self) -> str: ...
    def predict(
        self, conditions: list[str], *, draws: int, n_cells: dict[str, int], seed: int
    ) -> PosteriorLike:
        """Joint posterior of the conditions, for pseudobulks of so many cells."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods against a reference on the same held-out conditions.

    table: one row per stratum, method and metric (see ``differences.difference_table``); sentences: what it
    supports, one per stratum and method; warnings: what else differs between the methods; scores: every
    condition's scores, for other questions.
    """

    scores: Scores
    table: pd.DataFrame
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    reference: str

    @classmethod
    def of(
        cls,
        scores: Scores,
        methods: Sequence[str],
        reference: str,
        warnings: Sequence[str] = (),
        resamples: int = RESAMPLES,
        seed: int = 0,
        draw_error: Mapping[tuple[str, str, str], float] | None = None,
    ) -> Comparison:
        """Compare methods whose scores are there already."""
        table = difference_table(
            scores, methods, reference, resamples=resamples, seed=seed, draw_error=draw_error
        )
        return cls(scores, table, sentences(table), tuple(warnings), reference)

    def __str__(self) -> str:
        return "\n".join([*self.sentences, *(f"Note: {warning}" for warning in self.warnings)])

    def to_markdown(self) -> str:
        """Sentences, warnings, tables and how to read them."""
        said = "\n\n".join([*self.sentences, *(f"**{warning}**" for warning in self.warnings)])
        reading = "\n".join(f"- {line}" for line in READING)
        return f"{said}\n\n{markdown_tables(self.table)}\n\n### How to read this\n\n{reading}\n"


def compare(
    fits: Mapping[str, FitLike],
    test: Screen | ConditionSummary,
    *,
    draws: int = 400,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Predict the conditions of test with every fit and compare their scores, paired by condition.

    test: measured conditions that no fit was trained on, as a screen or its summary; control is left out.
    Every fit predicts pseudobulks of the test's own cell counts from as many draws and the same seed.
    reference: the fit that the others are compared with (default: the first). Shifts are taken from its
    training control, the energy score is in units of its training cells' sd within conditions. A target
    counts as seen where every fit was trained on it alone. Predictions are made one fit at a time, so memory
    holds the draws of one; they are scored whole and in five batches, whose spread is the noise of the draws.
    Raises InputError, in one sentence, for fewer than two fits, other genes or scales, a condition that a fit
    was trained on, an unknown target, and a test without any condition left.
    """
    names = list(fits)
    if len(names) < 2:
        raise InputError(
            f"A comparison needs two fits or more, but {len(names)} was given; name another one."
        )
    if taken := [name for name in names if name in (PERFECT, REPLICATE)]:
        raise InputError(f"The name {taken[0]!r} is taken by the scores themselves; choose another.")
    first = names[0] if reference is None else reference
    if first not in fits:
        raise InputError(f"The reference {first!r} is not among the fits {listing(names)}; name one of them.")
    if draws < MINIMUM_DRAWS:
        raise InputError(
            f"{draws} draws are too few to score intervals; ask for {MINIMUM_DRAWS} or more (400 by default)."
        )
    genes = _common_genes(fits, first)
    _check_scale(fits, first, test)
    truth = _measured(fits, first, test, genes)
    n_cells = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    training = select(fits[first].training, genes, f"The training summary of {first!r}")
    row = control_row(training)
    predictions = _Predictions(fits, n_cells, genes, draws, seed)
    scored = evaluate(
        truth,
        predictions,
        (training.mean[row], training.variance[row], int(training.n_cells[row])),
        set.intersection(*(singles(fit.training) for fit in fits.values())),
        np.sqrt(cell_variance(training)),
        [name for name in predictions if _BATCH in name],
        training,
    )
    scores, batches = _apart(scored)
    others = [_data_warning(fits, name, first) for name in names if name != first]
    warnings = [one for one in others if one]
    return Comparison.of(scores, names, first, warnings, resamples, seed, draw_errors(batches, first))


class _Predictions(Mapping[str, Prediction]):
    """Each fit's prediction, then batches of its draws, made when they are asked for; one fit is held at a time."""

    def __init__(
        self,
        fits: Mapping[str, FitLike],
        n_cells: dict[str, int],
        genes: NDArray[np.str_],
        draws: int,
        seed: int,
    ) -> None:
        self.fits, self.n_cells, self.genes, self.n_draws, self.seed = fits, n_cells, genes, draws, seed
        self.held: tuple[str, Prediction] | None = None

    def __getitem__(self, key: str) -> Prediction:
        name, _, batch = key.partition(_BATCH)
        if self.held is None or self.held[0] != name:
            self.held = None  # makes room first
            posterior = self.fits[name].predict(
                list(self.n_cells), draws=self.n_draws, n_cells=self.n_cells, seed=self.seed
            )
            self.held = name, prediction(posterior, self.genes, f"The prediction of {name!r}")
        whole = self.held[1]
        if not batch:
            return whole
        assert whole.draws is not None
        # every fifth draw: an ensemble gives its members' draws one member after the other
        part = whole.draws[int(batch) :: BATCHES][: self.n_draws // BATCHES]
        return Prediction(part.mean(axis=0, dtype=np.float64), draws=part)

    def __iter__(self) -> Iterator[str]:
        for name in self.fits:
            yield name
            yield from (f"{name}{_BATCH}{batch}" for batch in range(BATCHES))

    def __len__(self) -> int:
        return len(self.fits) * (BATCHES + 1)


def _apart(scored: Scores) -> tuple[Scores, list[Scores]]:
    """Scores of whole predictions (and floors), and of every batch of draws under the same names."""
    named = scored.rows["method"].str.partition(_BATCH)
    batches = [
        Scores(scored.rows[named[2] == str(batch)].assign(method=named[0])) for batch in range(BATCHES)
    ]
    return Scores(scored.rows[named[1] == ""].reset_index(drop=True)), batches


def prediction(posterior: PosteriorLike, genes: NDArray[np.str_], whose: str) -> Prediction:
    """Draws of the measured pseudobulks and their mean, genes in this order."""
    drawn = posterior.draws()
    columns = _places(np.asarray(posterior.genes), genes, whose)
    if columns is not None:
        drawn = drawn[:, :, columns]
    return Prediction(drawn.mean(axis=0, dtype=np.float64), draws=drawn)


def select(summary: ConditionSummary, genes: NDArray[np.str_], whose: str) -> ConditionSummary:
    """A summary of these genes, in this order; InputError, which begins with `whose`, where one is missing."""
    columns = _places(np.asarray(summary.genes), genes, whose)
    if columns is None:
        return summary
    picked = {
        name: np.ascontiguousarray(getattr(summary, name)[..., columns])
        for name in ("mean", "variance", "halves")
    }
    return dataclasses.replace(summary, genes=genes, **picked)  # type: ignore[arg-type]


def singles(training: ConditionSummary) -> set[str]:
    """Targets with a condition of their own."""
    given = np.asarray(training.design) != 0
    alone = given[given.sum(axis=1) == 1].any(axis=0)
    return {target for target, there in zip(training.targets, alone, strict=True) if there}


def _places(have: NDArray[np.str_], want: NDArray[np.str_], whose: str) -> NDArray[np.int64] | None:
    """Places of the wanted genes; None where they are all there is, in that order."""
    if np.array_equal(have, want):
        return None
    place = {str(gene): column for column, gene in enumerate(have)}
    absent = [str(gene) for gene in want if str(gene) not in place]
    if absent:
        raise InputError(
            f"{whose} lacks {len(absent)} of the {len(want)} genes that the fits predict, such as {absent[0]!r}; "
            "give data with all of them."
        )
    return np.array([place[str(gene)] for gene in want])


def _common_genes(fits: Mapping[str, FitLike], first: str) -> NDArray[np.str_]:
    genes = np.asarray(fits[first].genes)
    own = {str(gene) for gene in genes}
    for name, fit in fits.items():
        other = {str(gene) for gene in fit.genes}
        if other != own:
            raise InputError(
                f"{first!r} and {name!r} predict different genes ({len(own)} and {len(other)}, "
                f"{len(own & other)} of them shared); fit both to the same list of genes."
            )
    return genes


def _check_scale(fits: Mapping[str, FitLike], first: str, test: Screen | ConditionSummary) -> None:
    scale = fits[first].scale
    for name, fit in fits.items():
        if fit.scale != scale:
            raise InputError(
                f"{first!r} was fitted to {scale} and {name!r} to {fit.scale}; compare fits on the same scale."
            )
    if not isinstance(test, ConditionSummary) and test.scale != scale:
        raise InputError(
            f"The test data hold {test.scale} but the fits were made on {scale}; give test data on the same scale."
        )


def _measured(
    fits: Mapping[str, FitLike], first: str, test: Screen | ConditionSummary, genes: NDArray[np.str_]
) -> ConditionSummary:
    """The perturbed conditions of test, in an order that does not depend on test's, once all fits may be asked for them."""
    whole = test if isinstance(test, ConditionSummary) else test.summary()
    n_targets = (np.asarray(whole.design) != 0).sum(axis=1)
    size = {name: int(n) for name, n in zip(whole.conditions, n_targets, strict=True) if n}
    if not size:
        raise InputError(
            "There is no perturbed condition to compare on; give test data with held-out conditions."
        )
    names = sorted(size, key=lambda name: (size[name], name))
    for fit_name, fit in fits.items():
        own = set(fit.conditions)
        if trained := [name for name in names if name in own]:
            more = f" (and {len(trained) - 1} more)" if len(trained) > 1 else ""
            raise InputError(
                f"{fit_name!r} was trained on the condition {trained[0]!r}{more}; compare on conditions that no "
                "fit was trained on."
            )
        known = set(getattr(fit, "known_targets", fit.training.targets))
        unknown = [target for target in whole.restrict(names).targets if target not in known]
        if unknown:
            raise InputError(
                f"{fit_name!r} knows no target {unknown[0]!r}, which the test data have; leave its conditions out."
            )
    return select(whole.restrict(names), genes, "The test data")


def _data_warning(fits: Mapping[str, FitLike], name: str, first: str) -> str:
    """A sentence where two fits were not trained on the same conditions or numbers of cells; else nothing."""
    one, other = (
        dict(zip(fits[key].training.conditions, fits[key].training.n_cells.tolist(), strict=True))
        for key in (name, first)
    )
    if one == other:
        return ""
    if one.keys() != other.keys():
        shared = len(one.keys() & other.keys())
        found = f"conditions ({len(one)} and {len(other)}, {shared} of them shared)"
    else:
        found = f"numbers of cells ({sum(one.values())} and {sum(other.values())})"
    return f"{name} and {first} were trained on different {found}: this compares their data as well as their models."
