"""The experiment on rivals: exact oracles of the closed forms, who sees which pair, widths, verdicts, and its documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pvae_pyro as pv
from experiments.filling import filled
from experiments.rivals import arms, publish
from experiments.rivals.closed import CLOSED, Known
from experiments.rivals.family import FAMILY, OURS, gene_sets
from experiments.rivals.scoring import MEAN, errors, scored, widened
from experiments.rivals.screens import CONTROLS, LEAST, Bench, noise_of, real_pseudobulk, simulated
from pvae_pyro.evaluation.baselines import KERNEL_RIDGE, SHRUNK, baselines

HERE = Path(arms.__file__).parent


@pytest.fixture(scope="module")
def bench() -> Bench:
    return simulated()


@pytest.fixture(scope="module")
def known(bench: Bench) -> Known:
    return bench.known([])


def rule(known: Known, bench: Bench, name: str, **settings: object) -> np.ndarray:
    return CLOSED[name].rule(known, bench.asked(known, bench.odd), settings)


def test_an_additive_screen_is_predicted_exactly_by_what_adds(bench: Bench, known: Known) -> None:
    truth = known.effects.control + bench.asked(known, bench.odd) @ known.effects.shift
    full = len(known.effects.control)
    same: dict[str, dict[str, float]] = {
        "additive": {}, "scaled additive": {"k": 1.0}, "PCA + additive": {"components": full},
        "low-rank additive": {"rank": full, "k": 1.0},
    }  # fmt: skip
    for name, settings in same.items():
        assert np.allclose(rule(known, bench, name, **settings), truth, atol=1e-5), name
    half = rule(known, bench, "scaled additive", k=0.5)
    assert np.allclose(half - known.effects.control, 0.5 * (truth - known.effects.control))


def test_two_neighbours_by_name_are_the_two_singles(bench: Bench, known: Known) -> None:
    """Of singles alone a pair's nearest two in multi-hot space are its own targets: the mean of the singles, not their sum."""
    asked = bench.asked(known, bench.odd)
    expected = known.effects.control + 0.5 * (asked @ known.effects.shift)
    assert np.allclose(rule(known, bench, "KNN", features="names", n_neighbors=2), expected)


def test_an_elastic_net_of_names_adds_up_to_the_intercept(bench: Bench, known: Known) -> None:
    """Without a penalty every single is fitted, so that a pair is the sum of its singles less one intercept."""
    made = rule(known, bench, "elastic net", features="names", alpha=1e-7)
    single = CLOSED["elastic net"].rule(known, np.eye(len(known.effects.seen)), {"features": "names", "alpha": 1e-7})
    assert np.abs(single - known.effects.control - known.effects.shift).max() < 1e-3
    gap = known.effects.control + bench.asked(known, bench.odd) @ known.effects.shift - made
    assert np.abs(gap - gap[0]).max() < 5e-3


def test_what_the_package_has_is_what_is_scored(bench: Bench) -> None:
    for pairs, name, theirs, settings in (
        ((), "shrunk additive", SHRUNK, {"k": 1.0}), (bench.even, "kernel ridge", KERNEL_RIDGE, {"scores": 8, "penalty": 0.5})
    ):  # fmt: skip
        known, truth = bench.known(pairs), bench.summary.restrict(bench.odd)
        other = baselines(known.training, truth.design, truth.n_cells, truth.targets)[theirs].mean
        assert np.allclose(rule(known, bench, name, **settings), other, atol=1e-8), name


def test_no_odd_pair_is_trained_on_and_no_fold_sees_its_own(bench: Bench) -> None:
    for pairs in ((), bench.even):
        conditions = set(bench.known(pairs).training.conditions)
        assert not conditions & set(bench.odd) and conditions >= {"control", *pairs}
        assert set(bench.train(pairs).conditions) == conditions
    folds = bench.folds()
    assert sorted(c for fold in folds for c in fold) == sorted(bench.even)
    closed = CLOSED["kernel ridge"]
    left = arms.out_of_fold(bench, "doubles", closed, closed.grid[0])
    held = folds[0]
    known = bench.known([c for c in bench.even if c not in held])
    expected = errors(bench, closed.rule(known, bench.asked(known, held), closed.grid[0]), tuple(held))
    assert np.allclose(left[[bench.even.index(c) for c in held]], expected)


def test_odd_pairs_move_neither_choice_nor_width(bench: Bench) -> None:
    wrong = pv.ConditionSummary(**{**vars(bench.summary), "mean": bench.summary.mean.copy()})
    rows = [wrong.index(c) for c in bench.odd]
    wrong.mean[rows] += 5.0
    other = Bench(bench.screen, wrong, bench.even, bench.odd)
    told = [[r for r in arms.closed_form(lambda b=b: b, "doubles", "kernel ridge", 0) if r[0][:6] in ("tuning", "chosen")]  # type: ignore[misc]
            for b in (bench, other)]  # fmt: skip
    assert told[0] == told[1] and len(told[0]) == 9
    mean = np.zeros((len(bench.odd), bench.screen.n_genes))
    left = np.random.default_rng(0).normal(size=(len(bench.even), bench.screen.n_genes))
    one, two = (widened(b, mean, bench.odd, left, bench.even).sd for b in (bench, other))
    assert np.array_equal(one, two)  # type: ignore[arg-type]


def test_widths_hold_where_errors_of_even_and_odd_pairs_are_alike(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    truth = bench.summary.restrict(bench.odd)
    sd = rng.uniform(0.3, 1.0, bench.screen.n_genes)
    left = sd * rng.normal(size=(len(bench.even), len(sd)))
    prediction = widened(bench, truth.mean - sd * rng.normal(size=truth.mean.shape), bench.odd, left, bench.even)
    found = {metric: value for what, metric, value in scored(bench, prediction, bench.odd) if what == MEAN}
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.04)


def test_pseudo_cells_have_exactly_the_measured_means(shared_data) -> None:  # type: ignore[no-untyped-def]
    import anndata

    data = anndata.read_h5ad(shared_data("norman_pseudobulk.h5ad"))
    made = real_pseudobulk(20)
    control = made.summary.mean[made.summary.index("control")]
    assert made.summary.conditions[0] == "control" and len(made.summary.conditions) == 181
    for name, shift in zip(data.obs["condition"], np.asarray(data.X), strict=True):
        assert np.abs(made.summary.mean[made.summary.index(name)] - control - shift).max() < 1e-4
    noise = noise_of(np.asarray(data.X)[[("+" not in c) for c in data.obs["condition"]]])
    assert np.sqrt(made.summary.variance.mean(0) / 20) == pytest.approx(noise, rel=0.1, abs=1e-6)
    assert len(made.odd) == 35 and len(made.even) == 41 and made.summary.n_cells[0] == CONTROLS


def test_noise_is_what_the_leading_directions_leave() -> None:
    rng = np.random.default_rng(0)
    sd = np.array([0.1, 0.2] * 100)
    low_rank = rng.normal(size=(120, 5)) @ rng.normal(size=(5, 200)) * 0.08
    found = noise_of(low_rank + sd * rng.normal(size=(120, 200)))
    assert found[::2].mean() == pytest.approx(0.1, rel=0.15) and found[1::2].mean() == pytest.approx(0.2, rel=0.15)


def test_a_gene_with_a_direction_of_its_own_keeps_some_noise() -> None:
    rng = np.random.default_rng(1)
    loading = np.array([10.0] + [0.1] * 199)  # a gene that is the direction itself, which leaves nothing of it
    shifts = rng.normal(size=(120, 1)) * loading + 0.1 * rng.normal(size=(120, 200))
    found = noise_of(shifts)
    assert found[0] == pytest.approx(LEAST * shifts[:, 0].std()) and found[1:].mean() == pytest.approx(0.1, rel=0.05)


def test_gene_sets_hold_every_gene_once(bench: Bench) -> None:
    sets = gene_sets(bench, 5)
    assert sorted(g for _, genes in sets for g in genes) == sorted(bench.summary.genes.astype(str)) and len(sets) == 5


@pytest.mark.parametrize(
    ("low", "high", "metric", "said"),
    [(0.1, 0.3, "l2", "behind"), (-0.3, -0.1, "l2", "ahead"), (-0.1, 0.1, "l2", "tied"), (0.1, 0.3, "delta_pearson", "ahead")],
)
def test_verdicts(low: float, high: float, metric: str, said: str) -> None:
    assert publish.verdict(low, high, metric) == said


def made_up(**gaps: float) -> pd.DataFrame:
    """Rows of three rivals and ours on 30 pairs; a gap is what is added to ours, whose noise by pair is shared."""
    rng = np.random.default_rng(0)
    base = rng.normal(4.0, 1.0, 30)
    rows = []
    for name, gap in {OURS: 0.0, **gaps}.items():
        for seed in range(3 if name == OURS else 1):
            for i, value in enumerate(base + gap + 0.05 * rng.normal(size=30)):
                rows += [(f"singles {name}", f"A+B{i}", m, seed, value) for m in publish.PAIRED]
            rows.append((f"singles {name}", MEAN, "l2", seed, value))
    return pd.DataFrame(rows, columns=["arm", "what", "metric", "seed", "value"])


def test_differences_are_paired_and_standing_follows_from_them() -> None:
    found = publish.differences(made_up(additive=1.0, KNN=0.0), "singles").query("metric == 'l2'").set_index("method")
    assert found.loc["additive", "difference"] == pytest.approx(1.0, abs=0.05)
    assert found.loc["additive", "standard_error"] < 0.03  # the pairs' own spread of 1 cancels
    assert publish.standing(found.reset_index(), "l2") == "tied for first with KNN"
    for gaps, said in (({"additive": 1.0}, "first"), ({"additive": 1.0, "KNN": -0.2}, "behind KNN")):
        assert publish.standing(publish.differences(made_up(**gaps), "singles"), "l2") == said
    assert publish.differences(made_up(additive=1.0).query("arm != 'singles perturbed_vae'"), "singles").empty


def test_every_rival_has_an_arm_and_what_is_tuned_has_the_same_budget() -> None:
    names = set(arms.arms())
    assert {f"{r} {n}" for r in arms.REGIMES for n in (*CLOSED, *FAMILY)} - names == {"singles kernel ridge"}
    assert {len(closed.grid) for closed in CLOSED.values()} <= {1, 8}
    assert {len(rival.settings) for rival in FAMILY.values()} <= {1, 8}
    assert arms.seeds_of(f"singles {OURS}") == (0, 1, 2) and arms.seeds_of("singles additive") == (0,)
    assert arms.seeds_of("tune sena, 30 gene sets, rate 0.003") == (0,)


def test_the_readme_is_its_results() -> None:
    results = pd.read_csv(HERE / "results.csv")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    made = publish.tables(results)
    assert filled(readme, "rivals", made) == readme, "run python -m experiments.rivals.publish"
    assert all(f"<!-- rivals: {name} -->" in readme for name in made)
    assert set(results["arm"]) <= set(arms.arms())
