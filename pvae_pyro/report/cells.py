"""The section of single cells: what a new cell of a condition looks like, beside a floor and normal laws around pseudobulks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.baselines import ADDITIVE
from pvae_pyro.evaluation.bootstrap import interval, resample_ratios
from pvae_pyro.evaluation.cells import energy_distance, spread_ratio
from pvae_pyro.evaluation.effects import cell_variance
from pvae_pyro.report.scoring import MODEL, FitLike, Scored

if TYPE_CHECKING:
    from pvae_pyro.screen import Screen

Array = NDArray[np.float64]

AROUND_ADDITIVE = "Normal around additive"
AROUND_OWN = "flattering: Normal around the condition's own pseudobulk"
OTHER_HALF = "floor: other half of the measured cells"
TITLES = {
    "cell_log_density": "log density, nats per gene",
    "cell_energy_distance": "energy distance",
    "cell_spread_ratio": "variance, predicted / measured",
}
GENES, MOST, FEWEST = 1000, 100, 10  # genes; cells of a half of a condition, at most and at least
DRAWS = 50


def score_cells(fit: FitLike, scored: Scored, cells: Screen, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Scores of new cells, as further rows of ``Scores.rows``: condition, method, metric, value, and what it says of conditions.

    Measured cells of each condition are cut at random into two halves of at most 100: the first is scored, the second stands for
    a perfect sampler and for the condition's own pseudobulk. On the 1,000 genes of highest training control mean, in units
    of the training sd within conditions. Normal laws have genes independent and the pooled training variance. Metrics:
    cell_log_density (`Posterior.cell_log_density` over genes, not in those units; larger is better), cell_energy_distance
    (`evaluation.cells`; smaller), cell_spread_ratio (median over genes; 1). Conditions with fewer than 20 cells are left out.
    Raises InputError where none is left or a gene is missing.
    """
    training, truth = scored.training, scored.truth
    variance = cell_variance(training)
    order = np.argsort(-np.where(variance > 0, scored.control, -np.inf), kind="stable")
    columns = np.sort(order[: min(GENES, int((variance > 0).sum()))])
    genes = [str(gene) for gene in truth.genes[columns]]
    halves = _halves(cells.select_genes(genes), truth.conditions, seed)
    if not halves:
        raise InputError(f"No scored condition has {2 * FEWEST} cells or more, so cells cannot be scored; leave --cells out.")
    posterior: Any = fit.predict(list(halves), draws=draws, n_cells=dict.fromkeys(halves, 1000), seed=seed)
    at = _places(posterior.genes, genes)
    sd, rng, found = np.sqrt(variance[columns]), np.random.default_rng(seed), []
    for name, (first, second) in halves.items():
        drawn = np.asarray(posterior.new_cells(name, len(first), seed)[:, at], float)
        own = float(posterior.cell_log_density(name, first, genes).mean()) / len(genes)
        found += _compared(name, MODEL, first, drawn, sd, own)
        additive = scored.predictions[ADDITIVE].mean[truth.index(name)][columns]
        for method, centre in ((AROUND_ADDITIVE, additive), (AROUND_OWN, second.mean(axis=0))):
            made = centre + sd * rng.normal(size=first.shape)
            density = -0.5 * (((first - centre) / sd) ** 2 + np.log(2 * np.pi * sd**2)).mean()
            found += _compared(name, method, first, made, sd, float(density))
        found += _compared(name, OTHER_HALF, first, second, sd, float("nan"))
    rows = pd.DataFrame(found, columns=["condition", "method", "metric", "value"]).dropna(subset=["value"])
    kept = [name for name in scored.scores.rows.columns if name not in ("method", "metric", "value")]
    return rows.merge(scored.scores.rows[kept].drop_duplicates("condition"), on="condition")


def cells_section(rows: pd.DataFrame, stratum: str, seed: int = 0) -> str:
    """Markdown without its heading, for one stratum of ``score_cells``."""
    part = rows[rows["stratum"] == stratum]
    count = part["condition"].nunique()
    if not count:
        return f"No condition of the stratum '{stratum}' has {2 * FEWEST} measured cells or more."
    text = (
        f"New cells of {count} condition{'' if count == 1 else 's'}, {stratum}: mean over conditions, 95 % bootstrap over them. "
        f"Up to {MOST} measured cells of a condition are scored, as many others are the floor. Log density is that of the normal "
        "law with the predicted mean and covariance (larger is better); energy distance, in units of the training sd of genes, "
        "compares samples (smaller is better; the floor is what a perfect sampler gets). Normal laws have independent genes; the "
        "one around its own pseudobulk has seen the condition. Formulas: docs/scores.md."
    )
    methods = list(dict.fromkeys(part["method"]))
    lines = [f"| method | {' | '.join(TITLES.values())} |", f"|---|{'---|' * len(TITLES)}"]
    for method in methods:
        shown = [_mean(part[(part["method"] == method) & (part["metric"] == metric)]["value"], seed) for metric in TITLES]
        lines.append(f"| {f'**{method}**' if method == MODEL else method} | {' | '.join(shown)} |")
    return f"{text}\n\n" + "\n".join(lines)


def _halves(cells: Screen, names: tuple[str, ...], seed: int) -> dict[str, tuple[Array, Array]]:
    """Two disjoint random halves (n, genes) of each condition's cells, dense, in the order of names."""
    out, rng = {}, np.random.default_rng(seed)
    for name in names:
        if name not in cells.conditions:
            continue
        rows = rng.permutation(np.flatnonzero(cells.condition == cells.conditions.index(name)))
        size = min(len(rows) // 2, MOST)
        if size >= FEWEST:
            taken = np.asarray(cells.expression[rows[: 2 * size]].toarray(), float)
            out[name] = taken[:size], taken[size:]
    return out


def _compared(
    name: str, method: str, real: Array, made: Array, sd: Array, density: float
) -> list[tuple[str, str, str, float]]:
    values = density, energy_distance(real / sd, made / sd), spread_ratio(made.var(axis=0), real.var(axis=0))[0]
    return [(name, method, metric, value) for metric, value in zip(TITLES, values, strict=True)]


def _places(have: NDArray[np.str_], want: list[str]) -> NDArray[np.int64]:
    place = {str(gene): column for column, gene in enumerate(have)}
    return np.array([place[gene] for gene in want], np.int64)


def _mean(values: pd.Series[float], seed: int) -> str:
    """Mean over conditions and its interval, as text; a dash without values."""
    known = np.asarray(values.dropna(), np.float64)
    if not len(known):
        return "-"
    low, high = interval(resample_ratios(known[:, None], np.ones((len(known), 1)), seed=seed))
    return f"{known.mean():.3g} ({low[0]:.3g} to {high[0]:.3g})"
