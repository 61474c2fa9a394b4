"""Calibration in the report: its tables are those of evaluation, its groups know no outcome, its figures say what they show."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from pvae_pyro.evaluation.baselines import baselines
from pvae_pyro.evaluation.interactions import measured_interactions, resistant
from pvae_pyro.evaluation.legacy import LEGACY
from pvae_pyro.evaluation.panel import FURTHER
from pvae_pyro.report import calibrating as c
from pvae_pyro.report import evaluate_run
from pvae_pyro.report.calibration_text import CAPTIONS, calibration_figures, calibration_section
from pvae_pyro.report.further import TITLES, further_section, resistant_scores
from pvae_pyro.report.plots import STYLES, save
from pvae_pyro.report.scoring import MODEL, Scored, score
from pvae_pyro.screen import ConditionSummary, Screen
from pvae_pyro.simulate import simulate

DRAWS = 80
UNIT = "mean log1p(counts per 10,000)"


class Posterior:
    """Draws around given means; ``interaction`` is there so that a report asks for latent means."""

    def __init__(
        self, names: list[str], genes: np.ndarray, mean: np.ndarray, sd: np.ndarray, draws: int, seed: int
    ) -> None:
        self.conditions, self.genes = tuple(names), genes
        noise = np.random.default_rng(seed).normal(size=(draws, *mean.shape))
        self.latent, self.measured = mean + 0.3 * sd * noise, mean + sd * noise

    def draws(self, kind: str) -> np.ndarray:
        return (self.measured if kind == "measured_pseudobulk" else self.latent).astype(np.float32)

    def interaction(self, name: str) -> None:
        raise AssertionError("one by one is slow")


class Additive:
    """Predicts the additive rule, pulled towards the measured mean, with a stated sd of ``width`` times the sampling noise."""

    scale, history = "counts", {"epoch": [0.0, 1.0], "loss": [3.0, 2.0]}

    def __init__(self, training: ConditionSummary, answer: ConditionSummary, width: float) -> None:
        self.training, self.answer, self.width = training, answer, width

    def predict(self, conditions: list[str], *, draws: int, n_cells: dict[str, int], seed: int) -> Posterior:
        targets = self.training.targets
        design = np.array([[float(t in name.split("+")) for t in targets] for name in conditions])
        mean = baselines(self.training, design, 100, targets)["additive"].mean.copy()
        for row, name in enumerate(conditions):
            if name in self.answer.conditions:
                mean[row] += 0.5 * (self.answer.mean[self.answer.index(name)] - mean[row])
        sd = self.width * np.full(mean.shape, 0.25)
        return Posterior(conditions, self.training.genes, mean, sd, draws, seed)

    def diagnose(self) -> tuple[Any, ...]:
        return ()


@pytest.fixture(scope="module")
def summaries() -> tuple[ConditionSummary, ConditionSummary]:
    """Training singles, and 30 measured pairs."""
    world = simulate(
        "default", seed=5, genes=40, targets=10, doubles=30, controls=300, cells_per_condition=60
    )
    whole = Screen.from_anndata(world.adata, "condition").summary()
    pairs = [name for name in whole.conditions if "+" in name]
    return whole.restrict([name for name in whole.conditions if name not in pairs]), whole.restrict(pairs)


@pytest.fixture(scope="module")
def scored(summaries: tuple[ConditionSummary, ConditionSummary]) -> Scored:
    return score(Additive(*summaries, width=1.0), summaries[1], DRAWS, 0)


@pytest.fixture(scope="module")
def found(scored: Scored) -> c.Calibration:
    return c.calibrate(scored)


def test_overall_coverage_is_that_of_the_scores(scored: Scored, found: c.Calibration) -> None:
    table = found.coverage
    for method in (MODEL, "probabilistic additive (sampling noise only)"):
        own = table[(table["method"] == method) & (table["group"] == "overall")].set_index("level")[
            "coverage"
        ]
        for level in (0.5, 0.8, 0.9, 0.95):
            assert own[level] == pytest.approx(scored.values(method, f"coverage_{100 * level:.0f}").mean())
    assert set(table["group"]) == {"overall", c.SIZE, c.CELLS, c.WIDTH, c.EXPRESSION}
    reference = table[(table["method"] == found.reference) & (table["group"] == "overall")]
    np.testing.assert_allclose(reference["relative_width"], 1.0)


def test_groups_do_not_know_the_outcome(
    scored: Scored, found: c.Calibration, summaries: tuple[ConditionSummary, ConditionSummary]
) -> None:
    other = dataclasses.replace(scored.truth, mean=scored.truth.mean + 1.0)
    moved = c.calibrate(dataclasses.replace(scored, truth=other))
    keys = ["group", "label", "level", "method"]
    one, two = (
        t[t["method"] == MODEL].set_index(keys)[["cases", "width"]] for t in (found.coverage, moved.coverage)
    )
    pd.testing.assert_frame_equal(one, two)
    assert not np.allclose(found.coverage["coverage"], moved.coverage["coverage"])


def test_conformal_is_a_row_of_its_own_and_mends_what_is_too_narrow(
    summaries: tuple[ConditionSummary, ConditionSummary],
) -> None:
    narrow = c.calibrate(score(Additive(*summaries, width=0.3), summaries[1], DRAWS, 0))
    table = narrow.coverage[narrow.coverage["group"] == "overall"].set_index(["method", "level"])
    assert table.loc[(MODEL, 0.9), "high"] < 0.8
    mended = table.loc[(c.CONFORMAL, 0.9)]
    assert mended["low"] < 0.9 + 1 / 30 and mended["high"] > 0.9 - 1 / 30
    assert mended["width"] > 1.5 * table.loc[(MODEL, 0.9), "width"]
    assert narrow.profile[c.CONFORMAL] > narrow.profile[MODEL]
    assert (narrow.pit[MODEL]["low"].iloc[:20] > 0).any() and (narrow.pit[MODEL]["high"].iloc[-20:] < 0).any()


def test_interactions_are_those_of_the_latent_means(scored: Scored, found: c.Calibration) -> None:
    assert scored.interactions is not None and found.interactions is not None
    measured, calls = scored.interactions
    expected = measured_interactions(scored.truth, scored.training)
    np.testing.assert_array_equal(measured.e, expected.e)
    # half of what was measured, up to the noise of the draws' mean
    np.testing.assert_allclose(calls.mean, 0.5 * measured.e, atol=6 * 0.3 * 0.25 * 2 / np.sqrt(DRAWS))
    value = found.interactions.set_index(["stratum", "metric"])["value"]
    assert 1.5 < value["all", "slope"] < 2.1 and value["all", "skill"] > 0.5


def test_every_number_is_in_the_table(found: c.Calibration) -> None:
    rows = found.rows()
    assert set(rows["quantity"]) == {"coverage", "pit", "sign", "sign_curve", "aurc", "aurc_lost", "spearman", "partial_spearman",
                                     "risk", "profile_coverage", "interaction", "interaction_call"}  # fmt: skip
    assert (
        rows["value"].notna().mean() > 0.95 and rows["stratum"].notna().all() and rows["method"].notna().all()
    )
    coverage = rows[rows["quantity"] == "coverage"]
    np.testing.assert_array_equal(coverage["value"], found.coverage["coverage"])
    assert (rows.loc[rows["quantity"] == "interaction", "conditions"] > 0).all()


def test_section_and_figures_stand_in_the_report(
    summaries: tuple[ConditionSummary, ConditionSummary], found: c.Calibration, tmp_path: Path
) -> None:
    fit = Additive(*summaries, width=1.0)
    evaluate_run(fit, summaries[1], tmp_path / "run", draws=DRAWS)
    report = (tmp_path / "run/report.md").read_text()
    section = report.split("\n## Calibration\n")[1].split("\n## ")[0]
    assert section.strip() == calibration_section(found, list(CAPTIONS)).strip()
    for name in CAPTIONS:
        assert f"]({name})" in section
        assert 5_000 < (tmp_path / "run" / name).stat().st_size < 60_000
    csv = pd.read_csv(tmp_path / "run/calibration.csv", float_precision="round_trip")
    np.testing.assert_array_equal(csv["value"], found.rows()["value"])
    overall = found.coverage[(found.coverage["method"] == MODEL) & (found.coverage["group"] == "overall")]
    for row in overall.itertuples():
        assert f"{row.coverage:.3f} ({row.low:.3f} to {row.high:.3f})" in section


def test_further_scores_show_every_metric_and_legacy_ones_apart(scored: Scored) -> None:
    said = further_section(scored)
    before, after = said.split("Legacy scores")
    for metric in (*FURTHER, *LEGACY):
        assert (f"| {TITLES[metric]} |" in after) == (metric in LEGACY)
        assert (f"| {TITLES[metric]} |" in before) == (metric in FURTHER)
    row = next(line for line in before.splitlines() if line.startswith("| delta slope |"))
    assert float(row.split("|")[2]) == pytest.approx(scored.values(MODEL, "delta_slope").mean(), rel=1e-3)


def test_resistant_combinations_are_the_hardest_third(scored: Scored) -> None:
    part = resistant_scores(scored)
    assert part is not None
    measured = measured_interactions(scored.truth, scored.training)
    hard = {n for n, one in zip(measured.conditions, resistant(measured.e, measured.se), strict=True) if one}
    assert set(part.rows["condition"]) == hard and len(hard) == 10
    l2 = part.rows[(part.rows["metric"] == "l2") & (part.rows["method"] == "additive")]["value"]
    assert l2.mean() > scored.values("additive", "l2").mean()


def test_few_conditions_have_a_report_too(
    summaries: tuple[ConditionSummary, ConditionSummary], tmp_path: Path
) -> None:
    fit = Additive(*summaries, width=1.0)
    for count in (1, 2, 7):
        truth = summaries[1].restrict(summaries[1].conditions[:count])
        evaluate_run(fit, truth, tmp_path / f"run{count}", draws=DRAWS)
        report = (tmp_path / f"run{count}/report.md").read_text()
        assert "too few conditions for group conformal" in report or f"| {c.CONFORMAL}" in report


def test_axes_are_named_and_methods_differ_without_colour(found: c.Calibration, tmp_path: Path) -> None:
    figures = calibration_figures(found, UNIT)
    assert set(figures) == set(CAPTIONS)
    for name, figure in figures.items():
        save(figure, tmp_path / name)
        for ax in figure.axes:
            shared = ax.get_subplotspec().rowspan.start == 0 and len(figure.axes) == 2
            assert ax.get_xlabel() or shared, name
        assert figure.axes[0].get_ylabel() or name == "calibration_groups.png"
    assert UNIT in figures["calibration_widths.png"].axes[0].get_xlabel()
    marks = [(style.marker, style.filled, style.line) for style in STYLES]
    assert len(set(marks)) == len(STYLES)
    light = [float(np.dot(to_rgb(style.colour), [0.299, 0.587, 0.114])) for style in STYLES]
    assert max(light) < 0.75  # dark enough on white


def test_point_predictions_have_no_calibration(scored: Scored, found: c.Calibration) -> None:
    widths = {name for name in scored.predictions if name.startswith("probabilistic additive")}
    assert set(found.pit) == {MODEL, *widths} and len(widths) == 2
    assert set(found.coverage["method"]) == {MODEL, c.CONFORMAL, *widths}
