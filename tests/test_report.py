"""The report: its numbers are evaluation's, its verdict is true, and it is written whole or not at all."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation import baselines as b
from pvae_pyro.evaluation.effects import cell_variance, control_row
from pvae_pyro.evaluation.scores import COVERAGES, PERFECT, REPLICATE, SHOWN, Scores, evaluate
from pvae_pyro.report import evaluate_run, plots, text, write
from pvae_pyro.report.calibration_text import CAPTIONS
from pvae_pyro.report.scoring import MODEL, WARM_START, Scored, score
from pvae_pyro.report.verdict import against_best, compare, coverage_sentence, verdict
from pvae_pyro.screen import ConditionSummary, Screen
from pvae_pyro.simulate import simulate

DRAWS = 60


class FakePosterior:
    """Draws that were made elsewhere."""

    def __init__(self, conditions: tuple[str, ...], genes: np.ndarray, draws: np.ndarray) -> None:
        self.conditions, self.genes, self._draws = conditions, genes, draws

    def draws(self, kind: str) -> np.ndarray:
        assert kind == "measured_pseudobulk"
        return self._draws


class FakeFit:
    """Predicts a baseline, pulled towards the measured answer (or away from it)."""

    scale = "counts"

    def __init__(
        self,
        training: ConditionSummary,
        answer: ConditionSummary,
        pull: float = 0.3,
        width: float = 0.1,
        history: dict[str, list[float]] | None = None,
        findings: tuple[Any, ...] = (),
    ) -> None:
        self.training, self.answer, self.pull, self.width = training, answer, pull, width
        self.history = {"epoch": [0.0, 1.0], "loss": [3.0, 2.0]} if history is None else history
        self.findings = findings
        self.asked: dict[str, int] = {}

    def predict(
        self, conditions: list[str], *, draws: int, n_cells: dict[str, int], seed: int
    ) -> FakePosterior:
        assert list(n_cells) == conditions
        self.asked = n_cells
        wanted = self.answer.restrict(conditions)
        n = np.array([n_cells[name] for name in conditions])
        mean = b.baselines(self.training, wanted.design, n, wanted.targets)[b.SHRUNK_PRIOR].mean
        mean = mean + self.pull * (wanted.mean - mean)
        sd = np.sqrt(self.width**2 + cell_variance(self.training) / n[:, None])
        noise = np.random.default_rng(seed).normal(size=(draws // 2, *mean.shape))
        # antithetic, so that the mean of the draws is the mean
        x = (mean + sd * np.concatenate([noise, -noise])).astype(np.float32)
        return FakePosterior(tuple(conditions), self.training.genes, x)

    def diagnose(self) -> tuple[Any, ...]:
        return self.findings


class StartedFit(FakeFit):
    """A fit that remembers its start."""

    def __init__(self, *args: Any, start: FakeFit | None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.start = start

    def at_start(self) -> FakeFit | None:
        return self.start


@pytest.fixture(scope="module")
def summaries() -> tuple[ConditionSummary, ConditionSummary]:
    """Training singles without T08, and all that is not trained with the control: three strata."""
    world = simulate("default", seed=3, genes=40, targets=9, doubles=30, controls=300, cells_per_condition=60)
    whole = Screen.from_anndata(world.adata, "condition").summary()
    singles = [name for name in whole.conditions if "+" not in name and name != "T08"]
    return whole.restrict(singles), whole.restrict(
        ["control", *(name for name in whole.conditions if name not in singles)]
    )


@pytest.fixture(scope="module")
def fit(summaries: tuple[ConditionSummary, ConditionSummary]) -> StartedFit:
    findings = (
        SimpleNamespace(topic="loss", level="fine", sentence="It has settled.", advice=""),
        SimpleNamespace(topic="leak", level="do not trust", sentence="It | leaks.", advice="Start again."),
    )
    start = FakeFit(*summaries, pull=0.0)
    return StartedFit(*summaries, start=start, findings=findings)


@pytest.fixture(scope="module")
def written(
    fit: StartedFit,
    summaries: tuple[ConditionSummary, ConditionSummary],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("reports") / "run"
    before = dict(matplotlib.rcParams)
    report = evaluate_run(fit, summaries[1], out, draws=DRAWS, data_note="simulated data")
    assert dict(matplotlib.rcParams) == before
    assert report == out / "report.md"
    return out


def main_stratum(scored: Scored, means: pd.DataFrame | None = None) -> tuple[list[Any], str]:
    """Comparisons with the best baseline in the main stratum, and the sentence."""
    name = scored.strata[0]
    table = scored.scores.table(name) if means is None else means
    judged = against_best(scored.scores, table, MODEL, scored.closed_forms, name)
    return judged, verdict(judged, name)


def tables_of(report: str) -> dict[str, dict[str, list[str]]]:
    """Tables of scores in a report: stratum -> method -> cells."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in report.split("\n## Scores: ")[1:]:
        rows = part.split("| method |")[1].split("\n\n")[0].splitlines()[2:]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
        found[part.split("\n")[0]] = {row[0]: row[1:] for row in cells}
    return found


def test_numbers_are_those_of_evaluation(
    written: Path, fit: StartedFit, summaries: tuple[ConditionSummary, ConditionSummary]
) -> None:
    training, truth = summaries
    names = sorted((n for n in truth.conditions if n != "control"), key=lambda n: (n.count("+"), n))
    measured = truth.restrict(names)
    cells = dict(zip(names, measured.n_cells.tolist(), strict=True))
    predictions = {}
    for method, one in ((MODEL, fit), (WARM_START, fit.start)):
        x = one.predict(names, draws=DRAWS, n_cells=cells, seed=0).draws("measured_pseudobulk")
        predictions[method] = Prediction(x.mean(axis=0, dtype=float), draws=x)
    predictions |= b.baselines(training, measured.design, measured.n_cells, measured.targets)
    predictions |= b.oracle_baselines(training, measured)
    row = control_row(training)
    control = training.mean[row], training.variance[row], int(training.n_cells[row])
    expected = evaluate(measured, predictions, control, set(training.targets), training=training)

    csv = pd.read_csv(written / "metrics.csv", float_precision="round_trip")
    assert not csv.duplicated(["condition", "method", "metric"]).any()
    assert set(csv["condition"]) == set(names)
    both = expected.rows.merge(csv, on=["condition", "method", "metric"], suffixes=("", "_csv"), how="outer")
    np.testing.assert_array_equal(both["value"], both["value_csv"])
    assert (both["stratum"] == both["stratum_csv"]).all()
    assert (csv["n_cells"] == csv["condition"].map(cells)).all()

    tables = tables_of((written / "report.md").read_text())
    means = expected.table()
    assert list(tables) == ["both seen", "one unseen", "unseen"]
    checked = set()
    for stratum, table in tables.items():
        assert next(iter(table)) == "**model**"
        assert list(table)[-2:] == [PERFECT, REPLICATE]
        part = means[means["stratum"] == stratum]
        for title, shown in table.items():
            method = title.removeprefix("flattering: ").strip("*")
            for metric, cell in zip(SHOWN, shown, strict=True):
                found = part[(part["method"] == method) & (part["metric"] == metric)]
                if cell == "-":
                    assert found.empty
                    continue
                value = found.iloc[0]
                digits = {"l2": 2, "crps": 4}.get(metric, 3)
                assert (
                    cell
                    == f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
                )
                checked.add((stratum, method, metric))
    assert {(stratum, MODEL, metric) for stratum in tables for metric in SHOWN} <= checked


def test_what_is_left_out_says_the_same(written: Path) -> None:
    report = (written / "report.md").read_text()
    csv = pd.read_csv(written / "metrics.csv")
    parts = [part.split("\n## ")[0] for part in report.split("\n## Scores: ")[1:]]
    pairs = 0
    for part in parts:
        stratum = part.split("\n")[0]
        wide = csv[csv["stratum"] == stratum].pivot(
            index="condition", columns=["method", "metric"], values="value"
        )
        for line in part.splitlines():
            if line.startswith("Left out"):
                for pair in line.removesuffix(".").split(": ", 1)[1].split("; "):
                    name, other = pair.split(" = ")
                    np.testing.assert_allclose(wide[name, "l2"], wide[other, "l2"], rtol=1e-6)
                    assert f"\n| {name} |" not in part
                    pairs += 1
        # every method is either in the table or named as left out
        for method in b.DESCRIPTIONS.keys() & set(csv["method"]):
            assert f"| {method} |" in part or f"{method} = " in part
    assert pairs


def test_the_report_says_what_was_asked_and_what_to_doubt(written: Path) -> None:
    report = (written / "report.md").read_text()
    assert report.splitlines()[0] == "# Predictions of measured perturbations, scored (simulated data)"
    assert "'do not trust': leak" in report.split("## What was asked")[0]
    assert "It \\| leaks." in report
    assert report.index("| do not trust |") < report.index("| fine |")
    assert f"{DRAWS} joint posterior draws, seed 0" in report
    assert "300 control cells; 8 singles" in report
    assert "measured pseudobulk" in report
    assert "0 combinations (0 cells)" in report
    assert "Against its own closed-form start" in report
    for row in report.splitlines():
        if b.ORACLE in row and row.startswith("| ") and "CRPS" not in row:
            assert row.startswith("| flattering: ")
    assert "flattering: " in report


def test_pseudobulks_have_the_measured_cell_counts(
    fit: StartedFit, summaries: tuple[ConditionSummary, ConditionSummary]
) -> None:
    truth = summaries[1]
    scored = score(fit, truth, DRAWS, 0)
    assert fit.asked == {
        name: int(n) for name, n in zip(truth.conditions, truth.n_cells, strict=True) if name != "control"
    }
    assert all(type(n) is int for n in fit.asked.values())
    assert "control" not in scored.truth.conditions


@pytest.mark.parametrize(("pull", "outcome"), [(0.5, "beats"), (0.0, "no difference"), (-0.5, "loses to")])
def test_the_verdict_is_true(
    pull: float, outcome: str, summaries: tuple[ConditionSummary, ConditionSummary]
) -> None:
    training, truth = summaries
    scored = score(FakeFit(training, truth, pull=pull), truth, DRAWS, 0)
    judged, sentence = main_stratum(scored)
    one = next(one for one in judged if one.metric == "l2")
    assert one.outcome.startswith(outcome)
    # the best baseline, the difference and its interval by brute force
    members = scored.members("both seen")
    errors = {name: scored.values(name, "l2").loc[members].to_numpy() for name in scored.scores.methods}
    best = min(scored.closed_forms, key=lambda name: errors[name].mean())
    np.testing.assert_allclose(errors[one.reference].mean(), errors[best].mean(), rtol=1e-9)
    difference = errors[MODEL] - errors[best]
    rng = np.random.default_rng(5)
    picks = rng.integers(0, len(members), (4000, len(members)))
    low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    assert one.difference == pytest.approx(difference.mean(), abs=1e-9)
    if outcome != "no difference":
        assert (high < 0) == (outcome == "beats")
        assert (low > 0) == (outcome == "loses to")
        assert f"{outcome} the best baseline on" in sentence
        assert "L2" in sentence.split(outcome)[1]
    else:
        assert "no difference beyond noise from the best baseline on L2" in sentence
        assert "beats the best baseline on L2" not in sentence
    assert sentence.startswith(f"On {len(members)} conditions (both seen) the model ")
    assert one.conditions == len(members)


def test_every_metric_is_judged_in_its_own_direction(
    summaries: tuple[ConditionSummary, ConditionSummary],
) -> None:
    training, truth = summaries
    for pull, wanted in ((0.5, "beats"), (-0.5, "loses to")):
        judged, sentence = main_stratum(score(FakeFit(training, truth, pull=pull), truth, DRAWS, 0))
        assert {one.metric: one.outcome for one in judged} == dict.fromkeys(
            ("l2", "delta_pearson", "mse_ratio", "crps"), wanted
        )
        assert sentence.endswith(f"{wanted} the best baseline on L2, delta Pearson, MSE ratio and CRPS.")


def table_of(values: dict[str, np.ndarray], metric: str = "l2") -> Scores:
    """Scores made by hand: method -> one value per condition."""
    rows = [
        (f"C{i}", method, metric, float(value), 2, 2, "both seen")
        for method, column in values.items()
        for i, value in enumerate(column)
    ]
    names = ["condition", "method", "metric", "value", "n_targets", "seen", "stratum"]
    return Scores(pd.DataFrame(rows, columns=names))


def test_mixed_outcomes_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 40)
    l2, crps = (
        table_of({MODEL: 2 + noise, "x": np.full(40, 3.0)}),
        {MODEL: 0.2 + noise, "x": np.full(40, 0.1)},
    )
    both = Scores(pd.concat([l2.rows, table_of(crps, "crps").rows]))
    judged = against_best(both, both.table(), MODEL, ["x"], "both seen")
    assert verdict(judged, "both seen") == (
        "On 40 conditions (both seen) the model beats the best baseline on L2 "
        "and loses to the best baseline on CRPS."
    )


def test_what_other_draws_can_make_is_not_a_difference() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(3, 5, 40)
    for shift, outcome in ((1e-7, "no difference beyond noise"), (0.01, "no difference beyond noise")):
        one = compare_pair(base - shift, base)
        assert one.high < 0
        assert one.small
        assert one.outcome == outcome
    assert compare_pair(base - 0.04, base).outcome == "beats"


def test_few_conditions_decide_less() -> None:
    three = compare_pair(np.array([3.0, 2.9, 1.0]), np.array([3.1, 3.1, 3.0]))
    assert three.difference < 0
    assert three.better == 1.0
    assert three.outcome == "no difference beyond noise"
    one = compare_pair(np.array([1.0]), np.array([3.0]))
    assert one.outcome == "cannot tell"
    assert "can be told from noise" in verdict([one], "both seen")
    assert "one condition cannot judge" in coverage_sentence([0.5], 0.5, 0.5)
    assert compare_pair(np.full(5, 1.0) + 0.01 * np.arange(5), np.full(5, 3.0)).outcome == "beats"


def test_equal_methods_are_rarely_called_different() -> None:
    rng = np.random.default_rng(1)
    calls = [compare_pair(4 + rng.normal(0, 1, 5), np.full(5, 4.0), 1000).outcome for _ in range(150)]
    wrong = np.mean([call != "no difference beyond noise" for call in calls])
    # plain percentile intervals are wrong in about 16 % of such cases
    assert wrong < 0.09


def compare_pair(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000) -> Any:
    scores = table_of({MODEL: ours, "x": theirs})
    found = compare(scores, scores.table(resamples=100), MODEL, "x", "l2", "both seen", resamples=resamples)
    assert found is not None
    return found


def test_coverage_is_judged_from_its_interval() -> None:
    rng = np.random.default_rng(2)
    shares = rng.normal(0.9, 0.05, 50)
    assert "in agreement with 90 % within noise" in coverage_sentence(shares, 0.88, 0.92)
    assert coverage_sentence(shares - 0.2, 0.68, 0.72).endswith("too narrow.")
    assert coverage_sentence(shares + 0.08, 0.96, 0.99).endswith("too wide.")
    # four conditions: the plain interval would already say too narrow
    assert "within noise" in coverage_sentence([0.70, 0.88, 0.89, 0.87], 0.76, 0.885)
    assert "undefined" in coverage_sentence([np.nan], np.nan, np.nan)


def test_the_flattered_baseline_is_no_contestant(
    fit: StartedFit, summaries: tuple[ConditionSummary, ConditionSummary]
) -> None:
    scored = score(fit, summaries[1], DRAWS, 0)
    assert scored.flattered
    assert not set(scored.flattered) & set(scored.closed_forms)
    judged, _ = main_stratum(scored)
    assert {one.reference for one in judged} <= set(scored.closed_forms)


def test_order_does_not_matter(
    written: Path, fit: StartedFit, summaries: tuple[ConditionSummary, ConditionSummary], tmp_path: Path
) -> None:
    _, truth = summaries
    rng = np.random.default_rng(0)
    mine = truth.mean + 0.1 * rng.normal(size=truth.mean.shape)
    rows, genes = rng.permutation(len(truth.conditions)), rng.permutation(len(truth.genes))
    other = truth.restrict([truth.conditions[row] for row in rows])
    other = dataclasses.replace(
        other,
        genes=other.genes[genes],
        mean=other.mean[:, genes],
        variance=other.variance[:, genes],
        halves=other.halves[:, :, genes],
    )
    extra = {"mine": Prediction(mean=mine[rows][:, genes], sd=np.ones(mine.shape))}
    evaluate_run(fit, other, tmp_path / "run", draws=DRAWS, extra=extra, data_note="simulated data")
    for file in text.FIGURES:
        assert (tmp_path / "run" / file).read_bytes() == (written / file).read_bytes()
    first, second = (
        [
            row
            for row in (folder / "report.md").read_text().splitlines()
            if not re.match(r"\| (written|mine) ", row)
        ]
        for folder in (written, tmp_path / "run")
    )
    assert first == second
    alone, more = (
        pd.read_csv(folder / "metrics.csv", float_precision="round_trip")
        for folder in (written, tmp_path / "run")
    )
    others = more[more["method"] != "mine"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, alone, check_exact=True)
    added = more[(more["method"] == "mine") & (more["metric"] == "l2")]
    distance = dict(zip(truth.conditions, np.linalg.norm(mine - truth.mean, axis=1), strict=True))
    np.testing.assert_allclose(added["value"], added["condition"].map(distance), rtol=1e-12)


def test_figures_are_there_small_and_unknown_to_pyplot(written: Path) -> None:
    from matplotlib import pyplot

    # a fit without interactions has no figure of them
    figures = {*text.FIGURES, *CAPTIONS} - {"calibration_interactions.png"}
    assert sorted(path.name for path in written.iterdir()) == sorted(
        ["report.md", "metrics.csv", "calibration.csv", *figures]
    )
    report = (written / "report.md").read_text()
    for name in figures:
        data = (written / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert 5_000 < len(data) < 120_000
        assert f"]({name})" in report
    assert pyplot.get_fignums() == []


def test_methods_differ_in_grey() -> None:
    weights = np.array([0.299, 0.587, 0.114])
    levels = [weights @ [int(s.colour[i : i + 2], 16) for i in (1, 3, 5)] for s in plots.STYLES]
    assert len({style.marker for style in plots.STYLES}) == len(plots.STYLES)
    assert len({style.line for style in plots.STYLES}) == len(plots.STYLES)
    assert min(levels[1:]) - levels[0] > 80


def test_shift_figure_shows_the_data_with_units() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30))
    panel = plots.ShiftPanel("odd $name", x, y, y - 1, y + 1)
    figure = plots.shift_figure([panel, panel], "shift from control, mean log1p(counts per 10,000)")
    assert "mean log1p(counts per 10,000)" in figure.get_supxlabel()
    for ax in figure.axes:
        line = next(line for line in ax.lines if line.get_label() == "one gene")
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
        assert ax.get_xlim() == ax.get_ylim()
        assert ax.get_xlim()[0] < min(x.min(), (y - 1).min())


def test_error_figure_is_ordered_by_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    errors = pd.DataFrame(
        rng.uniform(1, 5, (7, 3)), index=[f"A{i}+$B" for i in range(7)], columns=["model", "x", "y"]
    )
    strata = ["both seen"] * 4 + ["one unseen"] * 3
    figure = plots.error_figure(errors, strata, np.ones(7))
    (ax,) = figure.axes
    model = next(line for line in ax.lines if line.get_label() == "model")
    rows, values = np.asarray(model.get_ydata()), np.asarray(model.get_xdata())
    named = {row: tick.get_text() for row, tick in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    assert [errors.loc[named[row], "model"] for row in rows] == values.tolist()
    # from the top: strata in blocks, largest error first in each
    assert (np.diff(rows) == -1).all()
    assert {named[row] for row in rows[:4]} == set(errors.index[:4])
    assert (np.diff(values[:4]) <= 0).all()
    assert (np.diff(values[4:]) <= 0).all()
    plots.save(figure, tmp_path / "errors.png")  # a lone dollar sign is no formula
    many = pd.DataFrame(rng.uniform(1, 5, (700, 2)), columns=["model", "x"])
    long = pd.DataFrame(
        rng.uniform(1, 5, (90, 4)), index=[f"ENSG{i:011d}+ENSG{i * 7:011d}" for i in range(90)]
    )
    for table in (many, long):
        plots.save(plots.error_figure(table, ["both seen"] * len(table), None), tmp_path / "many.png")
        assert 20_000 < (tmp_path / "many.png").stat().st_size < 120_000


def test_coverage_curve_agrees_with_the_table(
    fit: StartedFit, summaries: tuple[ConditionSummary, ConditionSummary]
) -> None:
    scored = score(fit, summaries[1], DRAWS, 0)
    members = scored.members("both seen")
    method = f"probabilistic {b.ADDITIVE}{b.NOISE_ONLY}"
    for name in (MODEL, method):
        shares = scored.coverage(name, members, (0.5, 0.8, 0.9, 0.95))
        for column, metric in enumerate(COVERAGES):
            np.testing.assert_allclose(
                shares[:, column], scored.values(name, metric).loc[members], rtol=1e-12
            )
    figure = write._figures(fit, scored, 0)["coverage.png"]
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["calibrated", MODEL, method]
    curve = dict(zip(write.LEVELS, figure.axes[0].lines[1].get_ydata(), strict=True))
    assert curve[0.9] == pytest.approx(scored.values(MODEL, "coverage_90").loc[members].mean())


@pytest.mark.parametrize(
    ("history", "lines", "missing"),
    [
        ({}, (0, 0), 4),
        ({"loss": [3.0, 2.0, float("nan"), 1.0]}, (1, 0), 3),
        ({"epoch": [0, 1], "loss": [2.0, 1.0], "held_out_loss": [float("nan")] * 2}, (1, 0), 3),
        ({"epoch": [0, 1], "loss": [2.0, 1.0], "leakage_background": [0.1]}, (1, 0), 3),
        (
            {
                key: [1.0, 2.0]
                for key in ("epoch", "loss", "held_out_loss", "leakage_background", "leakage_responsive")
            },
            (2, 2),
            0,
        ),
    ],
)
def test_history_with_keys_missing(
    history: dict[str, list[float]], lines: tuple[int, int], missing: int, tmp_path: Path
) -> None:
    figure = plots.history_figure(history)
    assert isinstance(figure, Figure)
    assert tuple(len(ax.lines) for ax in figure.axes) == lines
    notes = [note.get_text() for ax in figure.axes for note in ax.texts]
    assert sum(len(note.split(": ")[1].split(", ")) for note in notes) == missing
    plots.save(figure, tmp_path / "history.png")


def test_single_targets_and_no_start(
    summaries: tuple[ConditionSummary, ConditionSummary], tmp_path: Path
) -> None:
    training, truth = summaries
    rng = np.random.default_rng(0)
    again = training.restrict([name for name in training.conditions if name not in ("control", "T01")])
    again = dataclasses.replace(again, mean=again.mean + 0.05 * rng.normal(size=again.mean.shape))
    fit = FakeFit(training, again, history={})
    report = evaluate_run(fit, again, tmp_path / "run", draws=DRAWS).read_text()
    (stratum,) = tables_of(report)
    assert stratum == "seen, itself trained"
    assert WARM_START not in report
    assert "Against its own" not in report
    assert "flattering" not in tables_of(report)[stratum]
    assert "additive = mean of the singles" in report
    assert b.ORACLE not in report
    unseen = evaluate_run(
        FakeFit(training, truth, history={}), truth.restrict(["T08"]), tmp_path / "one", draws=DRAWS
    )
    assert "On 1 condition (unseen) no difference" in unseen.read_text()
    assert list(tables_of(unseen.read_text())) == ["unseen"]


def test_conditions_trained_themselves_stand_apart(
    summaries: tuple[ConditionSummary, ConditionSummary],
) -> None:
    training, truth = summaries
    pairs = [name for name in truth.conditions if "+" in name and "T08" not in name]
    whole = dataclasses.replace(truth, conditions=truth.conditions)
    more = _joined(training, whole.restrict(pairs[:3]))
    scored = score(FakeFit(more, truth), truth.restrict(pairs), DRAWS, 0)
    assert scored.strata == ("both seen", "both seen, itself trained")
    assert scored.members("both seen, itself trained") == sorted(pairs[:3])
    assert scored.same_cells == tuple(sorted(pairs[:3]))
    assert scored.trained.sum() == 3
    means = scored.scores.table()
    said = text.markdown(FakeFit(more, truth), scored, means, DRAWS, 0, "")
    assert "the scored cells are the training cells" in said


def _joined(first: ConditionSummary, second: ConditionSummary) -> ConditionSummary:
    """Two summaries over the same genes as one."""
    targets = tuple(sorted({*first.targets, *second.targets}))
    design = np.zeros((len(first.conditions) + len(second.conditions), len(targets)), dtype=np.float32)
    for offset, one in ((0, first), (len(first.conditions), second)):
        for column, target in enumerate(one.targets):
            design[offset : offset + len(one.conditions), targets.index(target)] = one.design[:, column]
    return ConditionSummary(
        conditions=first.conditions + second.conditions,
        targets=targets,
        design=design,
        n_cells=np.concatenate([first.n_cells, second.n_cells]),
        mean=np.concatenate([first.mean, second.mean]),
        variance=np.concatenate([first.variance, second.variance]),
        halves=np.concatenate([first.halves, second.halves], axis=1),
        genes=first.genes,
    )


def test_better_than_perfect_is_suspicious(summaries: tuple[ConditionSummary, ConditionSummary]) -> None:
    training, truth = summaries
    for pull, suspicious in ((0.95, True), (0.0, False)):
        fit = FakeFit(training, truth, pull=pull, width=0.01)
        scored = score(fit, truth, DRAWS, 0)
        said = text.markdown(fit, scored, scored.scores.table(), DRAWS, 0, "")
        assert ("look for scored cells in the training data" in said) is suspicious


class Unused(FakeFit):
    """A fit that must not be asked."""

    def predict(self, *args: Any, **more: Any) -> FakePosterior:
        raise AssertionError("predicted before the output was checked")


def test_nothing_is_overwritten(summaries: tuple[ConditionSummary, ConditionSummary], tmp_path: Path) -> None:
    training, truth = summaries
    unused = Unused(training, truth)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("full", "file", "file/run", "nowhere/run"):
        with pytest.raises(InputError):
            evaluate_run(unused, truth, tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(28, "no space left"), InputError), (RuntimeError("x"), RuntimeError)]
)
def test_nothing_is_half_written(
    error: Exception,
    raised: type[Exception],
    summaries: tuple[ConditionSummary, ConditionSummary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Path] = []

    def fail_third(figure: Figure, path: Path) -> None:
        done.append(path)
        if len(done) == 3:
            raise error
        path.write_bytes(b"x")

    monkeypatch.setattr(write, "save", fail_third)
    with pytest.raises(raised):
        evaluate_run(FakeFit(*summaries), summaries[1], tmp_path / "run", draws=DRAWS)
    assert len(done) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(
    summaries: tuple[ConditionSummary, ConditionSummary], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    few = summaries[1].restrict(["T08"])
    assert evaluate_run(FakeFit(*summaries), few, tmp_path / "run", draws=DRAWS).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_bad_input_is_refused_in_one_sentence(summaries: tuple[ConditionSummary, ConditionSummary]) -> None:
    training, truth = summaries
    fit = FakeFit(training, truth)
    renamed = dataclasses.replace(truth, genes=np.array(["other", *truth.genes[1:].tolist()]))
    one = Prediction(truth.mean)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"draws": 1}, "1 draws are too few"),
        ({"truth": truth.restrict(["control"])}, "no perturbed condition"),
        ({"truth": renamed}, "lack 1 of the 40 genes"),
        ({"extra": {MODEL: one}}, "is taken"),
        ({"extra": {b.ADDITIVE: one}}, "is taken"),
        ({"extra": {"mine": Prediction(truth.mean[1:])}}, "one row per condition"),
    ]
    for changed, message in cases:
        arguments: dict[str, Any] = {"truth": truth, "draws": DRAWS, "seed": 0} | changed
        with pytest.raises(InputError, match=message) as caught:
            score(fit, **arguments)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)


def test_normalised_input_keeps_its_own_scale(
    summaries: tuple[ConditionSummary, ConditionSummary],
) -> None:
    fit = FakeFit(*summaries)
    fit.scale = "normalised"
    scored = score(fit, summaries[1], DRAWS, 0)
    said = text.markdown(fit, scored, scored.scores.table(), DRAWS, 0, "")
    assert "counts per 10,000" not in said
    assert "input's own scale" in write._figures(fit, scored, 0)["shifts.png"].get_supxlabel()
