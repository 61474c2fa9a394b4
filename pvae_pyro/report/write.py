"""Evaluate a fit on measured conditions and write the report: text, scores and calibration as CSV, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.baselines import ADDITIVE
from pvae_pyro.evaluation.bootstrap import interval, resample_ratios
from pvae_pyro.evaluation.scores import PERFECT
from pvae_pyro.outputs import staged
from pvae_pyro.report.calibrating import calibrate
from pvae_pyro.report.calibration_text import calibration_figures, calibration_section
from pvae_pyro.report.cells import cells_section, score_cells
from pvae_pyro.report.further import further_section
from pvae_pyro.report.plots import (
    CoverageCurve,
    ShiftPanel,
    coverage_figure,
    error_figure,
    history_figure,
    save,
    shift_figure,
)
from pvae_pyro.report.scoring import MODEL, FitLike, Scored, score, shown_closed_forms, unit
from pvae_pyro.report.text import markdown
from pvae_pyro.summary import ConditionSummary

if TYPE_CHECKING:
    from pvae_pyro.screen import Screen

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def evaluate_run(
    fit: FitLike,
    truth: ConditionSummary,
    out_dir: Path,
    draws: int = 400,
    seed: int = 0,
    extra: Mapping[str, Prediction] | None = None,
    data_note: str = "",
    cells: Screen | None = None,
) -> Path:
    """Predict the conditions of truth, score them beside every baseline, and write all that into out_dir.

    Pseudobulks are predicted for the truth's own cell counts, from ``draws`` draws. ``extra`` holds further
    methods, rows as in truth; ``data_note`` (such as "semi-synthetic data") goes into the title. ``cells``: the measured cells
    behind truth, for a section on new cells (see ``cells.score_cells``; it can take as long as all else). Written are
    report.md, metrics.csv (one row per condition, method and metric), calibration.csv (see ``Calibration.rows``) and PNG
    figures, all or nothing.
    Returns the path of report.md. Raises InputError when out_dir is there already and not an empty folder,
    or when truth cannot be scored.
    """
    out_dir = Path(out_dir).absolute()
    _check_free(out_dir)
    scored = score(fit, truth, draws, seed, extra)
    means = scored.scores.table(seed=seed)
    calibration = calibrate(scored, seed)
    more = calibration_figures(calibration, unit(fit))
    sections = {
        "Further scores": further_section(scored, seed),
        "Calibration": calibration_section(calibration, list(more)),
    }
    rows = scored.scores.rows
    if cells is not None:
        of_cells = score_cells(fit, scored, cells, seed=seed)
        sections["Cells"] = cells_section(of_cells, scored.strata[0], seed)
        rows = pd.concat([rows, of_cells], ignore_index=True)
    text = markdown(fit, scored, means, draws, seed, data_note, sections)
    figures = _figures(fit, scored, seed) | more
    try:
        with staged(out_dir) as (partial,):
            partial.mkdir()
            (partial / "report.md").write_text(text, encoding="utf-8")
            rows.to_csv(partial / "metrics.csv", index=False)
            calibration.rows().to_csv(partial / "calibration.csv", index=False)
            for name, figure in figures.items():
                save(figure, partial / name)
    except OSError as error:
        raise InputError(
            f"The report cannot be written to {out_dir} ({error.strerror or error}); name another folder."
        ) from error
    return out_dir / "report.md"


def _check_free(out_dir: Path) -> None:
    """Refuse, before any work is done, a folder that is in use or cannot be made."""
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        return
    if out_dir.exists() or out_dir.is_symlink():
        raise InputError(f"The report's folder {out_dir} is there already; name a new one or remove it.")
    if not out_dir.parent.is_dir():
        raise InputError(
            f"The report cannot be written to {out_dir}: there is no folder {out_dir.parent}; make it first."
        )


def _figures(fit: FitLike, scored: Scored, seed: int) -> dict[str, Figure]:
    main = scored.strata[0]
    conditions = scored.members(main)
    along = f"shift from control, {unit(fit)}"
    methods = [MODEL, *shown_closed_forms(scored)]
    errors = pd.DataFrame({name: scored.values(name, "l2") for name in methods})
    blocks = [name for name in scored.strata for _ in scored.members(name)]
    errors = errors.loc[[name for group in scored.strata for name in scored.members(group)]]
    floor = scored.values(PERFECT, "l2").reindex(errors.index)
    widths = [MODEL] + [name for name in scored.closed_forms if name.startswith(f"probabilistic {ADDITIVE}")]
    curves = [_curve(scored, name, conditions, seed) for name in widths]
    subject = f"{len(conditions)} condition{'' if len(conditions) == 1 else 's'}, {main}"
    measure = f"L2 to the measured mean, {unit(fit)}, {len(scored.truth.genes)} genes"
    return {
        "shifts.png": shift_figure(_panels(scored, conditions), along),
        "errors.png": error_figure(errors, blocks, floor, measure),
        "coverage.png": coverage_figure(LEVELS, curves, subject),
        "history.png": history_figure(fit.history),
    }


def _panels(scored: Scored, conditions: Sequence[str]) -> list[ShiftPanel]:
    """Best, median and worst condition by relative error; fewer where there are fewer."""
    relative = scored.relative_error().loc[list(conditions)].sort_values(kind="stable")
    places = {"best": 0, "median": (len(relative) - 1) // 2, "worst": len(relative) - 1}
    if len(relative) == 2:
        del places["median"]
    if len(relative) == 1:
        places = {"the only condition": 0}
    draws, control = scored.predictions[MODEL].draws, scored.control
    assert draws is not None
    inside = scored.values(MODEL, "coverage_90")
    panels = []
    for word, place in places.items():
        name = str(relative.index[place])
        row = scored.truth.index(name)
        share = 100 * inside[name]
        low, high = np.quantile(draws[:, row].astype(float), [0.05, 0.95], axis=0)
        panels.append(
            ShiftPanel(
                title=f"{word}: {name}\nL2 / shift {relative.iloc[place]:.2f}, {share:.0f} % inside",
                measured=scored.truth.mean[row] - control,
                predicted=scored.predictions[MODEL].mean[row] - control,
                low=low - control,
                high=high - control,
            )
        )
    return panels


def _curve(scored: Scored, method: str, conditions: Sequence[str], seed: int) -> CoverageCurve:
    shares = scored.coverage(method, conditions, LEVELS)
    low, high = interval(resample_ratios(shares, np.ones_like(shares), seed=seed))
    return CoverageCurve(method, shares.mean(axis=0), low, high)
