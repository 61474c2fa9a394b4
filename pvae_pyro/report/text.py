"""The words and tables of a report, as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata

import numpy as np
import pandas as pd

from pvae_pyro.evaluation.baselines import ADDITIVE, DESCRIPTIONS, NOISE_ONLY
from pvae_pyro.evaluation.scores import PERFECT, REPLICATE, to_markdown
from pvae_pyro.labels import listing
from pvae_pyro.report.scoring import MODEL, WARM_START, FindingLike, FitLike, Scored, unit
from pvae_pyro.report.verdict import (
    FEW,
    SMALL,
    TITLES,
    Comparison,
    against_best,
    compare,
    coverage_sentence,
    number,
    spread,
    training_sentence,
    verdict,
)

FIGURES = {
    "shifts.png": (
        "Every gene in the best, the median and the worst condition (by L2 relative to the length of its own "
        "shift): predicted against measured shift, with 90 % intervals."
    ),
    "errors.png": "L2 of each condition beside baselines and the floor, ordered by the model's.",
    "coverage.png": (
        "Share of measured values inside central intervals against their nominal level, in the first "
        "stratum; bands: 95 % bootstrap over conditions."
    ),
    "history.png": (
        "Loss and effect leakage over epochs: leakage that grows means that background latents or noise, not "
        "effects, carry the perturbation."
    ),
}
_LISTED = 60
_ORDER = ("do not trust", "look", "fine")
_PACKAGES = ("pvae-pyro", "torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "matplotlib")


def markdown(
    fit: FitLike,
    scored: Scored,
    means: pd.DataFrame,
    draws: int,
    seed: int,
    data_note: str,
    sections: Mapping[str, str] | None = None,
) -> str:
    """The whole report; sections, heading -> text, stand between scores and figures."""
    strata = scored.strata
    main = strata[0]
    note = f" ({data_note.strip()})" if data_note.strip() else ""
    findings = sorted(fit.diagnose(), key=lambda one: _ORDER.index(one.level) if one.level in _ORDER else 0)
    parts = [
        f"# Predictions of measured perturbations, scored{note}",
        "## Verdict",
        _verdict_text(scored, means, main, seed, findings),
        "## What was asked",
        _asked(fit, scored, draws, seed),
        f"## Scores: {main}",
        _table(scored, means, main),
    ]
    for name in strata[1:]:
        parts += [f"## Scores: {name}", _verdict_text(scored, means, name, seed), _table(scored, means, name)]
    for heading, body in (sections or {}).items():
        parts += [f"## {heading}", body]
    parts.append("## Figures")
    parts += [f"![{name.removesuffix('.png')}]({name})\n\n{text}" for name, text in FIGURES.items()]
    parts += ["## Diagnosis of the fit", _diagnosis(findings)]
    parts += ["## Every condition", _every_condition(scored)]
    parts += ["## How to read this", _reading(fit, scored, draws)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _verdict_text(
    scored: Scored, means: pd.DataFrame, stratum: str, seed: int, findings: Sequence[FindingLike] = ()
) -> str:
    """Verdict, coverage, what training did, and the comparison metric by metric."""
    scores = scored.scores
    judged = against_best(scores, means, MODEL, scored.closed_forms, stratum, seed=seed)
    lines = [f"**{verdict(judged, stratum)}**"]
    covered = means[
        (means["stratum"] == stratum) & (means["method"] == MODEL) & (means["metric"] == "coverage_90")
    ]
    if len(covered):
        shares = scored.values(MODEL, "coverage_90").loc[scored.members(stratum)]
        low, high = (float(covered[name].iloc[0]) for name in ("low", "high"))
        lines[0] += " " + coverage_sentence(shares.to_numpy(), low, high)
    if WARM_START in scored.predictions:
        pairs = [
            compare(scores, means, MODEL, WARM_START, metric, stratum, seed)
            for metric in ("l2", "delta_pearson", "crps")
        ]
        lines.append(training_sentence([one for one in pairs if one]))
    floor = compare(scores, means, MODEL, PERFECT, "l2", stratum, seed)
    if floor is not None and floor.outcome == "beats":
        lines.append(
            f"**Its L2 is below what a perfect prediction would get ({number(floor.theirs, 'l2')}), beyond "
            "noise: look for scored cells in the training data.**"
        )
    doubts = [one.topic for one in findings if one.level == "do not trust"]
    if doubts:
        lines.append(f"**The diagnosis of this fit says 'do not trust': {', '.join(doubts)}; see below.**")
    lines.append(_comparison_table(judged, scored, means, stratum, seed))
    count = len(scored.members(stratum))
    if 1 < count < FEW:
        lines.append(
            f"With {count} conditions the intervals of this section are standard errors times Student's t; "
            "the plain bootstrap intervals in the table of scores are too narrow for so few."
        )
    return "\n\n".join(line for line in lines if line)


def _comparison_table(
    judged: Sequence[Comparison], scored: Scored, means: pd.DataFrame, stratum: str, seed: int
) -> str:
    lines = [
        "| metric | model | best baseline here | its score | difference (95 %) | nearer on | the model |",
        "|---|---|---|---|---|---|---|",
    ]
    flattered = against_best(scored.scores, means, MODEL, scored.flattered, stratum, ("crps",), seed)
    for one in [*judged, *flattered]:
        title = TITLES[one.metric] + (", against flattered widths" if one in flattered else "")
        ours, theirs = number(one.ours, one.metric), number(one.theirs, one.metric)
        outcome = one.outcome + (SMALL if one.small else "")
        cells = [title, ours, one.reference, theirs, spread(one), f"{100 * one.better:.0f} %", outcome]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _asked(fit: FitLike, scored: Scored, draws: int, seed: int) -> str:
    training, truth = scored.training, scored.truth
    kinds = (np.asarray(training.design) != 0).sum(axis=1)
    counts = [
        f"{int(training.n_cells[kinds == 0].sum())} control cells",
        *(
            f"{_count(int(which.sum()), name)} ({int(training.n_cells[which].sum())} cells)"
            for which, name in ((kinds == 1, "single"), (kinds > 1, "combination"))
        ),
    ]
    trained = [name for name, kind in zip(training.conditions, kinds, strict=True) if kind]
    strata = ", ".join(f"{len(scored.members(name))} {name}" for name in scored.strata)
    cells = truth.n_cells
    facts = {
        "scale": f"{fit.scale}: {unit(fit)}",
        "genes": f"{len(truth.genes)}",
        "trained on": "; ".join(counts),
        "trained conditions": listing(trained),
        "scored": f"{_count(len(truth.conditions), 'condition')} ({strata}), {int(cells.sum())} cells, "
        f"{int(np.median(cells))} per condition (median; {int(cells.min())} to {int(cells.max())})",
        "scored conditions": listing(truth.conditions),
        "prediction": f"{draws} joint posterior draws, seed {seed}",
    }
    for name in ("model", "guide", "settings", "seed", "date", "versions", "notices"):
        value = getattr(fit, name, None)
        if isinstance(value, (tuple, list)):
            value = " ".join(str(one) for one in value)
        if isinstance(value, dict):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        if value is not None and value != "":
            facts[f"fit: {name}"] = str(value) if isinstance(value, str) else repr(value)
    facts["written with"] = _versions()
    facts["written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _table(scored: Scored, means: pd.DataFrame, stratum: str) -> str:
    """The stratum's table of scores, without closed forms that repeat another."""
    part = means[means["stratum"] == stratum]
    twins = scored.twins(stratum)
    part = part[~part["method"].isin(list(twins))]
    titles = {MODEL: f"**{MODEL}**"} | {name: f"flattering: {name}" for name in scored.flattered}
    named = part.assign(method=[_cell(titles.get(str(name), str(name))) for name in part["method"]])
    lines = [to_markdown(named)]
    if twins:
        same = "; ".join(f"{name} = {other}" for name, other in twins.items())
        lines.append(f"Left out, since they say the same here: {same}.")
    rows = scored.scores.rows
    rows = rows[(rows["stratum"] == stratum) & (rows["metric"] == "delta_pearson_undefined")]
    rows = rows[~rows["method"].isin(list(twins))]
    undefined = rows.groupby("method", sort=False)["value"].sum()
    shown = [f"{name} on {int(value)}" for name, value in undefined.items() if value > 0]
    if shown:
        lines.append(
            f"No correlation exists, and 0 stands for it, on conditions without a shift: {', '.join(shown)}."
        )
    return "\n".join(lines)


def _diagnosis(findings: Sequence[FindingLike]) -> str:
    if not findings:
        return "The fit reports no findings."
    rows = [
        f"| {one.level} | {one.topic} | {_cell(one.sentence)} | {_cell(one.advice)} |" for one in findings
    ]
    return "\n".join(["| level | topic | finding | advice |", "|---|---|---|---|", *rows])


def _every_condition(scored: Scored) -> str:
    """The model's scores condition by condition, largest relative error first."""
    relative = scored.relative_error().sort_values(ascending=False, kind="stable")
    columns = {
        "L2": scored.values(MODEL, "l2"),
        "delta Pearson": scored.values(MODEL, "delta_pearson"),
        "CRPS": scored.values(MODEL, "crps"),
        "90 % interval covers": scored.values(MODEL, "coverage_90"),
        "L2 of additive": scored.values(ADDITIVE, "l2"),
        "floor L2": scored.values(PERFECT, "l2"),
    }
    digits = {"L2": 2, "CRPS": 4, "L2 of additive": 2, "floor L2": 2}
    stratum = {name: group for group in scored.strata for name in scored.members(group)}
    lines = [
        f"| condition | cells | stratum | L2 / length of its shift | {' | '.join(columns)} |",
        f"|---|---|---|---|{'---|' * len(columns)}",
    ]
    for name, value in relative.head(_LISTED).items():
        cells = scored.truth.n_cells[scored.truth.index(str(name))]
        scores = [_plain(values.get(name, np.nan), digits.get(title, 3)) for title, values in columns.items()]
        start = [_cell(str(name)), str(cells), stratum[str(name)], _plain(value, 2)]
        lines.append(f"| {' | '.join([*start, *scores])} |")
    if len(relative) > _LISTED:
        lines.append(f"\n{len(relative) - _LISTED} conditions with smaller errors are in metrics.csv.")
    return "\n".join(lines)


def _reading(fit: FitLike, scored: Scored, draws: int) -> str:
    share = (draws - 1) / (draws + 1)
    notes = [
        (
            "Intervals are for the *measured pseudobulk*: the average over n cells, on the scale "
            f"{unit(fit)}, n being each condition's own number of measured cells. They hold the uncertainty "
            "about the condition's mean and the sampling noise of n cells; an interval for the latent mean "
            "alone is narrower, one for a new cell much wider."
        ),
        (
            f"From {draws} draws, calibrated 90 % intervals are expected to cover {0.9 * share:.4f}. "
            "Coverage leaves out genes that are zero in the control and in every scored condition."
        ),
        (
            "Strata say how many of a condition's targets were trained as singles, which sets how hard it "
            "is; they are never pooled. Every average gives conditions equal weight, and intervals come from "
            "resampling conditions."
        ),
        (
            "L2, MSE ratio and CRPS: smaller is better. Delta Pearson: larger is better; it is blind to the "
            "size of a shift. MSE ratio: 0 is perfect, 1 is as bad as no change, sampling noise taken out. "
            "The CRPS of a method without widths is its mean absolute error."
        ),
        (
            "The best baseline is picked metric by metric on the scored conditions themselves, which favours "
            "it. A difference below half a per cent of the baseline's score counts as none: other draws can "
            "make it. All genes are scored, those of the perturbed targets as well."
        ),
        (
            f"'{PERFECT}': the true mean scored against the measured one, which no method can beat except by "
            f"luck; '{REPLICATE}': a second measurement of as many cells. Both are estimated from halves of "
            "the cells."
        ),
    ]
    if scored.flattered:
        notes.append(
            "Rows marked flattering fitted their widths on the scored conditions, which no forecast could "
            "do; they are no contestants for the best baseline."
        )
    if any(name.endswith(NOISE_ONLY) for name in scored.closed_forms):
        notes.append(
            "Without training combinations the probabilistic baselines know sampling noise only, nothing of "
            "interactions, so their intervals are narrow."
        )
    if scored.trained.any():
        notes.append(
            f"{_count(int(scored.trained.sum()), 'scored condition')} with other cells in the training data "
            "stand in strata apart."
        )
    if scored.same_cells:
        notes.append(
            f"**On {listing(scored.same_cells, 4)} the scored cells are the training cells: these scores say "
            "how well the fit remembers, not how well it predicts.**"
        )
    said = [f"{name}: {text}" for name, text in DESCRIPTIONS.items() if name in scored.closed_forms]
    return "\n".join(f"- {note}" for note in [*notes, f"Baselines. {'; '.join(said)}."])


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    """Text that does not break a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
