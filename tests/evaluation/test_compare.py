"""Comparisons of stub fits whose quality is known: what is called better, how surely, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction
from pvae_pyro.evaluation.bootstrap import PairedDifference, interval, resample_ratios
from pvae_pyro.evaluation.compare import Comparison, compare
from pvae_pyro.evaluation.differences import COMPARED, difference_table, outcome, sentences, spread
from pvae_pyro.evaluation.scores import PERFECT, evaluate
from pvae_pyro.report.comparison_plot import comparison_figure
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.summary import ConditionSummary

pytestmark = pytest.mark.filterwarnings("error")

GENES = 30
TARGETS = tuple(f"T{i:02d}" for i in range(9))
PAIRS = tuple(f"{p}+{q}" for i, p in enumerate(TARGETS[:8]) for q in TARGETS[i + 1 : 8])  # 28, both seen
UNSEEN = tuple(f"{p}+T08" for p in TARGETS[:5])
CELLS = 40


class StubPosterior:
    def __init__(self, genes: np.ndarray, draws: np.ndarray) -> None:
        self.genes, self._draws = genes, draws

    def draws(self) -> np.ndarray:
        return self._draws


class StubFit:
    """Predicts the answer, plus `bias`, with the right width times `width`."""

    scale = "counts"

    def __init__(
        self,
        training: ConditionSummary,
        answer: ConditionSummary,
        bias: float = 0.0,
        width: float = 1.0,
        genes: Sequence[str] | None = None,
    ) -> None:
        self.training, self.answer, self.bias, self.width = training, answer, bias, width
        self.genes = np.asarray(training.genes if genes is None else genes)
        self.conditions = training.conditions
        self.known_targets = TARGETS
        self.asked: list[tuple[list[str], dict[str, int], int]] = []

    def predict(
        self, conditions: list[str], *, draws: int, n_cells: dict[str, int], seed: int
    ) -> StubPosterior:
        self.asked.append((conditions, n_cells, seed))
        mean = self.answer.restrict(conditions).mean
        noise = np.random.default_rng(seed).normal(size=(draws, *mean.shape))
        x = mean + self.bias + self.width * noise / np.sqrt(CELLS)
        columns = [list(self.answer.genes).index(gene) for gene in self.genes]
        return StubPosterior(self.genes, x[:, :, columns].astype(np.float32))


@pytest.fixture(scope="module")
def world(
    make_summary: Callable[..., ConditionSummary],
) -> tuple[ConditionSummary, ConditionSummary, ConditionSummary]:
    """Training (control and 8 singles), the expected held-out means, and their measurement with unit cell variance."""
    rng = np.random.default_rng(0)
    effect = {name: rng.normal(size=GENES) for name in TARGETS}
    control = rng.normal(size=GENES)
    means = {"control": control} | {name: control + effect[name] for name in TARGETS[:8]}
    pairs = {name: control + sum(effect[one] for one in name.split("+")) for name in (*UNSEEN, *PAIRS)}
    expected = make_summary(pairs, CELLS, targets=TARGETS)
    noisy = {name: mean + rng.normal(size=GENES) / np.sqrt(CELLS) for name, mean in pairs.items()}
    measured = make_summary({"control": control} | noisy, CELLS, targets=TARGETS)
    return make_summary(means, CELLS), expected, measured


@pytest.fixture(scope="module")
def make_fit(world: tuple[ConditionSummary, ...]) -> Callable[..., StubFit]:
    return lambda **how: StubFit(world[0], world[1], **how)


@pytest.fixture(scope="module")
def found(world: tuple[ConditionSummary, ...], make_fit: Callable[..., StubFit]) -> Comparison:
    """A good fit, the same once more, one that is off by a third of an sd of a cell, one that is too sure."""
    fits = {"good": make_fit(), "twin": make_fit(), "off": make_fit(bias=1 / 3), "sure": make_fit(width=0.4)}
    return compare(fits, world[2], draws=100)


def row_of(comparison: Comparison, method: str, metric: str, stratum: str = "both seen") -> Any:
    table = comparison.table
    (row,) = table[
        (table["method"] == method) & (table["metric"] == metric) & (table["stratum"] == stratum)
    ].itertuples()
    return row


def sentence_of(comparison: Comparison, method: str, stratum: str = "both seen") -> str:
    (one,) = [text for text in comparison.sentences if f"({stratum})" in text and f" {method}" in text]
    return one


def test_an_identical_fit_differs_by_exactly_nothing(found: Comparison) -> None:
    twin = found.table[found.table["method"] == "twin"]
    assert set(twin["metric"]) == set(COMPARED)
    assert (twin[["difference", "standard_error", "draw_error", "low", "high"]] == 0).all(axis=None)
    assert (twin["share_better"] == 0.5).all()
    assert (twin["outcome"] == "no difference beyond noise").all()
    assert sentence_of(found, "twin").startswith(
        "On 28 conditions (both seen) there is no difference beyond noise between twin and good, on any of log score, "
    )
    assert "better" not in sentence_of(found, "twin") and "worse" not in sentence_of(found, "twin")


def test_a_fit_that_is_worse_by_a_known_amount_is_called_worse_by_about_that(found: Comparison) -> None:
    for metric in ("log_score", "crps", "energy_score", "l2", "coverage_90"):
        row = row_of(found, "off", metric)
        assert row.outcome == "worse" and row.conditions == 28, metric
        assert row.low <= row.difference <= row.high and not row.low <= 0 <= row.high
        assert row.value - row.reference_value == pytest.approx(row.difference)
    assert row_of(found, "off", "l2").share_better == 0.0
    # a constant shift does not touch a correlation, but for the noise of the draws
    assert row_of(found, "off", "delta_pearson").outcome == "no difference beyond noise"
    # with unit variance of a cell, the log score loses bias^2 / (2 / n) nats per gene
    lost = row_of(found, "off", "log_score")
    assert lost.difference == pytest.approx(-CELLS / 2 / 9, abs=3 * lost.standard_error + 0.1)
    # squared L2: the measurement's own noise, GENES / n, and the bias
    expected = np.sqrt(GENES / CELLS + GENES / 9)
    assert row_of(found, "off", "l2").value == pytest.approx(expected, rel=0.05)
    text = sentence_of(found, "off")
    assert re.search(r"off is worse than good on log score \(-2\.\d+, standard error 0\.\d+\)", text)
    assert text.endswith("there is no difference beyond noise on delta Pearson.")


def test_a_fit_that_is_too_sure_loses_on_proper_scores_and_not_on_points(found: Comparison) -> None:
    for metric in ("log_score", "crps", "energy_score", "coverage_90"):
        assert row_of(found, "sure", metric).outcome == "worse", metric
    assert row_of(found, "sure", "l2").outcome == "no difference beyond noise"
    assert "90 % coverage (0.4" in sentence_of(found, "sure")


def test_the_reference_may_be_any_fit_and_signs_turn_with_it(
    found: Comparison, world: tuple[ConditionSummary, ...], make_fit: Callable[..., StubFit]
) -> None:
    fits = {"good": make_fit(), "off": make_fit(bias=1 / 3)}
    turned = compare(fits, world[2], draws=100, reference="off")
    assert set(turned.table["method"]) == {"good"} and turned.reference == "off"
    for metric in COMPARED:
        one, other = row_of(turned, "good", metric), row_of(found, "off", metric)
        # the log score's common genes and all else are the same, so the differences are each other's opposite
        assert one.difference == pytest.approx(-other.difference, abs=1e-12)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert "good is better than off on log score" in sentence_of(turned, "good")


def test_standard_errors_are_those_of_a_mean_of_paired_differences(found: Comparison) -> None:
    rows = found.scores.rows
    for metric in ("crps", "log_score"):
        wide = rows[(rows["metric"] == metric) & (rows["stratum"] == "both seen")].pivot(
            index="condition", columns="method", values="value"
        )
        gap = wide["off"] - wide["good"]
        row = row_of(found, "off", metric)
        assert row.difference == pytest.approx(gap.mean())
        assert row.standard_error == pytest.approx(gap.std(ddof=1) / np.sqrt(28), rel=0.03)


def test_intervals_of_few_conditions_are_not_narrower_than_students(found: Comparison) -> None:
    row = row_of(found, "off", "crps", "one unseen")
    assert row.conditions == 5
    # Student's t of four degrees of freedom, for five conditions as for five batches of draws
    expected = 2.776 * np.hypot(row.standard_error, row.draw_error)
    assert (row.high - row.low) / 2 == pytest.approx(expected, rel=1e-3)
    assert "With 5 conditions only a large difference could show." in sentence_of(found, "off", "one unseen")
    assert "large" not in sentence_of(found, "off")


class SharedNoise(StubFit):
    """Posterior draws of which most of the spread is common to all conditions, as that of a model's globals is."""

    own_seed = 0

    def predict(
        self, conditions: list[str], *, draws: int, n_cells: dict[str, int], seed: int
    ) -> StubPosterior:
        mean = self.answer.restrict(conditions).mean
        rng = np.random.default_rng([self.own_seed, seed])
        noise = rng.normal(size=(draws, 1, GENES)) + 0.3 * rng.normal(size=(draws, *mean.shape))
        return StubPosterior(self.genes, mean + noise / 2)


def test_the_noise_of_few_draws_is_not_taken_for_a_difference(world: tuple[ConditionSummary, ...]) -> None:
    training, expected, measured = world
    called, careless = [], []
    for repeat in range(8):
        fits = {"a": SharedNoise(training, expected), "b": SharedNoise(training, expected)}
        fits["b"].own_seed = repeat + 1  # the same posterior, other draws of it
        found = compare(fits, measured.restrict(PAIRS), draws=60, resamples=300)
        called += list(found.table["outcome"] != "no difference beyond noise")
        blind = difference_table(found.scores, ["a", "b"], "a", resamples=300)
        careless += list(blind["outcome"] != "no difference beyond noise")
    assert np.mean(called) < 0.1
    assert np.mean(careless) > 0.3, "conditions alone do not show it"


def test_the_error_of_the_draws_is_that_of_repeated_predictions(world: tuple[ConditionSummary, ...]) -> None:
    training, expected, measured = world
    gaps, errors = [], []
    for repeat in range(20):
        fits = {"a": SharedNoise(training, expected), "b": SharedNoise(training, expected)}
        fits["b"].own_seed = 1
        found = compare(fits, measured.restrict(PAIRS[:8]), draws=100, resamples=2, seed=repeat)
        gaps.append(row_of(found, "b", "crps").difference)
        errors.append(row_of(found, "b", "crps").draw_error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(gaps, ddof=1), rel=0.4)


@pytest.mark.parametrize("count", [4, 12, 40])
def test_intervals_hold_the_true_difference_as_often_as_they_say(count: int) -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(600):
        gap = 0.3 + rng.normal(size=(count, 1))
        samples = resample_ratios(gap, np.ones_like(gap), 400)
        low, high = interval(samples)
        paired = PairedDifference(
            "a", "b", "crps", "", float(gap.mean()), low[0], high[0], samples.std(ddof=1), 0.5, count
        )
        _, low, high = spread(paired)
        covered.append(low <= 0.3 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_strata_stand_apart_and_combinations_of_seen_targets_come_first(found: Comparison) -> None:
    assert list(dict.fromkeys(found.table["stratum"])) == ["both seen", "one unseen"]
    assert len(found.sentences) == 6
    assert "control" not in set(found.scores.rows["condition"])


def test_a_target_is_seen_where_every_fit_saw_it(world: tuple[ConditionSummary, ...]) -> None:
    training, expected, measured = world
    fewer = training.restrict([name for name in training.conditions if name != "T00"])
    comparison = compare(
        {"all": StubFit(training, expected), "fewer": StubFit(fewer, expected)}, measured, draws=30
    )
    strata = comparison.scores.rows.drop_duplicates("condition").set_index("condition")["stratum"]
    assert strata["T00+T01"] == "one unseen" and strata["T00+T08"] == "both unseen"
    assert strata["T01+T02"] == "both seen"
    (warning,) = comparison.warnings
    assert warning.startswith(
        "fewer and all were trained on different conditions (8 and 9, 8 of them shared)"
    )
    assert warning in comparison.to_markdown() and warning in str(comparison)


def test_different_numbers_of_training_cells_are_said(
    found: Comparison, world: tuple[ConditionSummary, ...], make_summary: Callable[..., ConditionSummary]
) -> None:
    training, expected, measured = world
    means = dict(zip(training.conditions, training.mean, strict=True))
    half = StubFit(make_summary(means, CELLS // 2), expected)
    comparison = compare({"all": StubFit(training, expected), "half": half}, measured, draws=30)
    assert comparison.warnings[0].startswith(
        "half and all were trained on different numbers of cells (180 and 360)"
    )
    assert found.warnings == ()


def test_every_fit_is_asked_for_the_same_and_one_at_a_time(
    world: tuple[ConditionSummary, ...], make_fit: Callable[..., StubFit]
) -> None:
    fits = {"a": make_fit(), "b": make_fit(bias=0.1)}
    test = world[2]
    backwards = test.restrict(test.conditions[::-1])
    first, second = (compare(fits, one, draws=30, seed=3) for one in (test, backwards))
    for fit in fits.values():
        assert len(fit.asked) == 2, "one prediction a comparison"
        assert fit.asked[0] == fit.asked[1], "the order of the test data does not matter"
        conditions, n_cells, seed = fit.asked[0]
        assert sorted(conditions) == sorted((*PAIRS, *UNSEEN)) and seed == 3
        assert n_cells == dict.fromkeys(conditions, CELLS)
    assert first.table.equals(second.table)


def test_genes_may_stand_in_another_order_and_the_test_data_may_have_more(
    world: tuple[ConditionSummary, ...], make_fit: Callable[..., StubFit]
) -> None:
    genes = world[0].genes[:20]
    plain = {"a": make_fit(genes=genes), "b": make_fit(bias=0.2, genes=genes)}
    turned = {"a": make_fit(genes=genes), "b": make_fit(bias=0.2, genes=genes[::-1])}
    one, other = (compare(fits, world[2], draws=30) for fits in (plain, turned))
    np.testing.assert_allclose(one.table["value"], other.table["value"], rtol=1e-9)


def test_a_common_set_of_genes_has_log_scores(world: tuple[ConditionSummary, ...]) -> None:
    training, expected, measured = world

    class Silent(StubFit):
        """Sure that the last ten genes are what they are."""

        def predict(self, conditions: list[str], **how: Any) -> StubPosterior:
            posterior = super().predict(conditions, **how)
            posterior._draws[:, :, 20:] = self.answer.restrict(conditions).mean[:, 20:]
            return posterior

    comparison = compare(
        {"whole": StubFit(training, expected), "silent": Silent(training, expected)}, measured, draws=50
    )
    assert row_of(comparison, "silent", "log_score").difference == pytest.approx(0.0, abs=1e-9)


def test_a_screen_is_as_good_as_its_summary_if_it_is_on_the_scale_of_the_fits() -> None:
    world = simulate("default", seed=1, targets=4, doubles=4, controls=60, cells_per_condition=20, genes=15)
    screen = Screen.from_anndata(world.adata, "condition")
    whole = screen.summary()
    singles, pairs = (
        [name for name in whole.conditions if ("+" in name) == combined] for combined in (False, True)
    )
    fits = {}
    for name, bias in (("a", 0.0), ("b", 0.5)):
        fits[name] = StubFit(whole.restrict(singles), whole, bias=bias)
        fits[name].known_targets = whole.targets
    held_out = screen.restrict(["control", *pairs])
    one, other = (compare(fits, test, draws=20, resamples=50) for test in (held_out, whole.restrict(pairs)))
    assert one.table.equals(other.table) and set(one.scores.rows["condition"]) == set(pairs)
    with pytest.raises(InputError, match="test data hold normalised but the fits were made on counts"):
        compare(fits, dataclasses.replace(held_out, scale="normalised"), draws=20)


def test_nothing_can_be_told_from_one_condition(
    world: tuple[ConditionSummary, ...], make_fit: Callable[..., StubFit]
) -> None:
    one = compare({"a": make_fit(), "b": make_fit(bias=3.0)}, world[2].restrict([PAIRS[0]]), draws=30)
    assert (one.table["outcome"] == "cannot tell").all() and one.table["standard_error"].isna().all()
    assert one.sentences == (
        "On 1 condition (both seen) nothing can be told about b against a: one condition has no spread.",
    )
    assert "nan" not in one.to_markdown()
    assert isinstance(comparison_figure(one.table), Figure)


@pytest.mark.parametrize(
    ("metric", "value", "reference", "low", "high", "expected"),
    [
        ("crps", 0.9, 1.0, -0.15, -0.05, "better"),
        ("crps", 1.1, 1.0, 0.05, 0.15, "worse"),
        ("crps", 0.996, 1.0, -0.005, -0.003, "no difference beyond noise"),  # below half a per cent
        ("crps", 0.9, 1.0, -0.25, 0.05, "no difference beyond noise"),
        ("log_score", 0.02, 0.01, 0.005, 0.015, "better"),
        ("log_score", 0.012, 0.01, 0.001, 0.003, "no difference beyond noise"),
        ("log_score", -1.2, -1.0, -0.3, -0.1, "worse"),
        ("delta_pearson", 0.9, 0.8, 0.05, 0.15, "better"),
        ("coverage_90", 0.88, 0.80, 0.05, 0.11, "better"),
        ("coverage_90", 0.99, 0.93, 0.04, 0.08, "worse"),
        ("coverage_90", 0.95, 0.80, 0.1, 0.2, "better"),
        ("coverage_90", 0.70, 0.91, -0.3, -0.1, "worse"),
        ("coverage_90", 0.90, 0.80, 0.05, 0.15, "better"),
        ("l2", 0.9, 1.0, np.nan, np.nan, "cannot tell"),
    ],
)
def test_outcomes_by_hand(
    metric: str, value: float, reference: float, low: float, high: float, expected: str
) -> None:
    assert outcome(metric, value, reference, low, high) == expected


def test_coverage_on_two_sides_of_its_level_needs_more_than_a_difference() -> None:
    assert outcome("coverage_90", 0.95, 0.80, 0.1, 0.2, doubt=0.06) == "differs"
    assert outcome("coverage_90", 0.95, 0.80, 0.1, 0.2, doubt=0.04) == "better"
    # on the same side the difference is enough
    assert outcome("coverage_90", 0.85, 0.80, 0.01, 0.09, doubt=1.0) == "better"


def test_methods_on_two_sides_of_a_level_differ(world: tuple[ConditionSummary, ...]) -> None:
    training, expected, measured = world
    fits = {"narrow": StubFit(training, expected, width=0.85), "wide": StubFit(training, expected, width=1.3)}
    text = sentence_of(compare(fits, measured, draws=400), "wide")
    assert "wide and narrow differ on 90 % coverage (0.96" in text
    assert "one above its level and one below" in text


def test_methods_without_widths_are_compared_on_what_they_have(world: tuple[ConditionSummary, ...]) -> None:
    training, expected, measured = world
    truth = measured.restrict(PAIRS)
    points = {
        "a": Prediction(expected.restrict(PAIRS).mean),
        "b": Prediction(expected.restrict(PAIRS).mean + 1.0),
    }
    control = training.mean[0], training.variance[0], CELLS
    table = difference_table(evaluate(truth, points, control), ["a", "b"], "a")
    assert set(table["metric"]) == {"crps", "l2", "delta_pearson"}
    (text,) = sentences(table)
    assert "log score" not in text and "b is worse than a on CRPS" in text


def test_markdown_and_text_say_the_sentences_and_every_number(found: Comparison) -> None:
    text = found.to_markdown()
    assert all(sentence in text for sentence in found.sentences)
    assert str(found).splitlines() == list(found.sentences)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 6 * (1 + len(COMPARED))  # a head and its metrics, for three methods in two strata
    assert {line.count("|") for line in rows} == {8}
    row = row_of(found, "off", "crps")
    (shown,) = [
        line
        for line in text.split("### both seen: off against good")[1].split("###")[0].splitlines()
        if "CRPS" in line
    ]
    assert f"{row.difference:+.3g} ({row.standard_error:.2g})" in shown and shown.endswith("| worse |")


def test_the_figure_has_a_panel_per_metric_and_says_which_way_is_better(found: Comparison) -> None:
    figure = comparison_figure(found.table)
    labels = {ax.get_title(): ax.get_xlabel() for ax in figure.axes}
    assert len(labels) == len(COMPARED)
    assert labels["CRPS"].startswith("\u2190 better") and labels["log score"].endswith("better \u2192")
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert low == -high, "zero stands in the middle"
        assert len(ax.get_yticks()) == 6
    with pytest.raises(ValueError, match="no difference"):
        comparison_figure(found.table.iloc[:0])


@pytest.fixture
def refusals(
    world: tuple[ConditionSummary, ...],
    make_fit: Callable[..., StubFit],
    make_summary: Callable[..., ConditionSummary],
) -> Mapping[str, Callable[[], Any]]:
    training, expected, measured = world
    good = make_fit()
    normalised, ignorant = make_fit(), make_fit()
    normalised.scale = "normalised"
    ignorant.known_targets = TARGETS[:8]
    pair = expected.restrict([PAIRS[3]]).mean[0]
    trained = make_summary(
        dict(zip((*training.conditions, PAIRS[3]), (*training.mean, pair), strict=True)), CELLS
    )
    both = {"a": good, "b": make_fit()}
    less = make_summary(
        {name: mean[:9] for name, mean in zip(measured.conditions, measured.mean, strict=True)}, CELLS
    )
    return {
        "two fits or more": lambda: compare({"a": good}, measured),
        "taken by the scores": lambda: compare({"a": good, PERFECT: good}, measured),
        "'c' is not among the fits": lambda: compare(both, measured, reference="c"),
        "19 draws are too few": lambda: compare(both, measured, draws=19),
        "different genes \\(30 and 29, 29": lambda: compare(
            {"a": good, "b": make_fit(genes=training.genes[1:])}, measured
        ),
        "'b' to normalised": lambda: compare({"a": good, "b": normalised}, measured),
        "no perturbed condition": lambda: compare(both, measured.restrict(["control"])),
        f"'b' was trained on the condition '{re.escape(PAIRS[3])}'": lambda: compare(
            {"a": good, "b": StubFit(trained, expected)}, measured
        ),
        "'b' knows no target 'T08'": lambda: compare({"a": good, "b": ignorant}, measured),
        "test data lacks 21 of the 30 genes": lambda: compare(both, less),
    }


def test_what_cannot_be_compared_is_refused_in_one_sentence_and_before_any_prediction(
    refusals: Mapping[str, Callable[[], Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_prediction(*_: object, **__: object) -> None:
        raise AssertionError("a prediction was made")

    monkeypatch.setattr(StubFit, "predict", no_prediction)
    for pattern, refused in refusals.items():
        with pytest.raises(InputError, match=pattern) as caught:
            refused()
        text = str(caught.value)
        assert text.endswith(".") and not re.search(r"[.!?] +[A-Z]", text), text
