"""Baselines on data whose answer is known, on odd inputs, and on the Norman doubles."""

from __future__ import annotations

import numpy as np
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation import Prediction, simple
from pvae_pyro.evaluation import baselines as b
from pvae_pyro.evaluation.effects import seen_counts, single_effects, stratum
from pvae_pyro.evaluation.metrics import delta_pearson, half_replicate_floor, l2
from pvae_pyro.evaluation.scores import evaluate, parity

pytestmark = pytest.mark.filterwarnings("error")

CONTROL = np.array([1.0, 2.0, 0.5, 3.0, 1.5])
EFFECT = {
    "A": np.array([1.0, 0.0, -0.3, 0.2, 0.0]),
    "B": np.array([0.0, -0.5, 0.4, 0.0, 1.0]),
    "C": np.array([0.3, 0.3, 0.3, -1.0, 0.0]),
}


def means(*conditions: str, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Condition means that are exactly ``scale`` x additive for combinations."""
    result = {}
    for condition in conditions:
        parts = [part.split("@") for part in condition.split("+")] if condition != "control" else []
        total = sum((float(p[1]) if len(p) > 1 else 1.0) * EFFECT[p[0]] for p in parts)
        result[condition] = CONTROL + (scale if len(parts) > 1 else 1.0) * total
    return result


@pytest.fixture
def singles(make_summary):  # type: ignore[no-untyped-def]
    return make_summary(means("control", "A", "B", "C"), n_cells=[400, 50, 80, 120])


def test_additive_data_give_additive_predictions(singles, make_summary) -> None:  # type: ignore[no-untyped-def]
    test = make_summary(means("A+B", "A+B+C", "A@0.5+C", "B", "control"), targets=("A", "B", "C"))
    found = b.baselines(singles, test.design, 50)
    np.testing.assert_allclose(found[b.ADDITIVE].mean, test.mean, atol=1e-12)
    np.testing.assert_allclose(found[b.LOW_RANK].mean, test.mean, atol=1e-12)
    np.testing.assert_array_equal(found[b.NO_CHANGE].mean, np.tile(CONTROL, (5, 1)))
    shift = test.mean - CONTROL
    share = np.array([2, 3, 2, 1, 1])[:, None]
    np.testing.assert_allclose(found[b.MEAN_OF_SINGLES].mean, CONTROL + shift / share, atol=1e-12)
    scale = np.array([0.85, 0.85, 0.85, 1, 1])[:, None]
    for name in (b.SCALED, b.LOW_RANK_PRIOR):
        np.testing.assert_allclose(found[name].mean, CONTROL + scale * shift, atol=1e-12)


def test_strong_effects_are_hardly_shrunk(make_summary) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 60))
    names = [f"T{i:02d}" for i in range(12)]
    training = make_summary({"control": np.zeros(60)} | dict(zip(names, w, strict=True)), 100, 1e-8)
    test = make_summary({"T00+T05": w[0] + w[5]}, targets=names)
    found = b.baselines(training, test.design, 50)
    np.testing.assert_allclose(found[b.SHRUNK].mean, test.mean, atol=1e-4)
    np.testing.assert_allclose(found[b.SHRUNK_PRIOR].mean, 0.85 * test.mean, atol=1e-4)


def test_order_of_targets_and_of_training_conditions_does_not_matter(make_summary) -> None:  # type: ignore[no-untyped-def]
    straight = make_summary(means("control", "A", "B", "C", "A+B", scale=0.7), [90, 50, 60, 70, 80])
    turned = make_summary(means("A+B", "C", "B", "control", "A", scale=0.7), [80, 70, 60, 90, 50])
    first = b.baselines(straight, [[1, 0, 1], [0, 1, 1]], 40)
    second = b.baselines(turned, [[1, 1, 0], [1, 0, 1]], 40, targets=("C", "A", "B"))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name].mean, second[name].mean, atol=1e-10)


def test_doses_are_joined_through_the_origin(make_summary) -> None:  # type: ignore[no-untyped-def]
    training = make_summary(
        {"control": CONTROL, "A": CONTROL + 1.0, "A@2": CONTROL + 4.0, "B@0.5": CONTROL - 1.0},
        n_cells=[100, 30, 10, 20],
    )
    effects = single_effects(training)
    np.testing.assert_allclose(effects.shift[0], (30 * 1 * 1 + 10 * 2 * 4) / (30 + 40))
    np.testing.assert_allclose(effects.shift[1], -2.0)
    # variance of the same weighted sum of independent means, each with variance 1 / n
    np.testing.assert_allclose(effects.noise[0], (30**2 / 30 + 20**2 / 10) / 70**2)
    np.testing.assert_allclose(effects.control_weight, [(30 + 20) / 70, 2.0])


def test_unseen_targets_add_nothing_and_are_counted(make_summary) -> None:  # type: ignore[no-untyped-def]
    training = make_summary(means("control", "A", "C", "B+C"))
    design, targets = [[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], ("A", "B", "X")
    assert seen_counts(training, design, targets).tolist() == [1, 1, 0, 1]
    found = b.baselines(training, design, 50, targets)
    expected = CONTROL + np.array([EFFECT["A"], EFFECT["A"], 0 * EFFECT["A"], EFFECT["A"]])
    np.testing.assert_allclose(found[b.ADDITIVE].mean, expected, atol=1e-12)
    assert b.SCALED_SHRUNK not in found  # B+C has an unseen target, so nothing can be fitted on it
    known, unknown = found[f"probabilistic {b.ADDITIVE}{b.NOISE_ONLY}"].sd[[3, 2]]  # type: ignore[index]
    assert (unknown[[0, 3]] > known[[0, 3]]).all()  # the spread of effects over targets is not certainty


def test_combinations_do_not_touch_the_baselines_of_singles(singles, make_summary) -> None:  # type: ignore[no-untyped-def]
    more = make_summary(means("control", "A", "B", "C", "A+B", "B+C", scale=2.0), [400, 50, 80, 120, 33, 44])
    before, after = (b.baselines(training, [[1, 0, 1]], 50) for training in (singles, more))
    for name in (b.NO_CHANGE, b.MEAN_OF_SINGLES, b.ADDITIVE, b.LOW_RANK, b.LOW_RANK_PRIOR, b.SHRUNK):
        np.testing.assert_array_equal(before[name].mean, after[name].mean)


def test_scale_is_learnt_from_training_combinations(make_summary) -> None:  # type: ignore[no-untyped-def]
    training = make_summary(means("control", "A", "B", "C", "A+B", "A+C", scale=0.6), 200, 1e-6)
    truth = make_summary(means("B+C", "A+B+C", scale=0.6), targets=("A", "B", "C"))
    found = b.baselines(training, truth.design, 50)
    np.testing.assert_allclose(found[b.SCALED].mean, truth.mean, atol=1e-10)
    np.testing.assert_allclose(found[b.SCALED_SHRUNK].mean, truth.mean, atol=2e-3)
    np.testing.assert_allclose(found[b.KERNEL_RIDGE].mean, truth.mean, atol=2e-3)
    assert f"probabilistic {b.KERNEL_RIDGE}" in found and f"probabilistic {b.ADDITIVE}" in found


def test_kernel_ridge_learns_a_repeated_interaction(make_summary) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    # two families of like targets; a member of one with a member of the other always adds the same extra
    base, extra = rng.normal(size=(2, 80)), 2 * rng.normal(size=80)
    effect = {f"{k}{i}": base[j] + 0.05 * rng.normal(size=80) for j, k in enumerate("PQ") for i in range(6)}
    pairs = [(f"P{i}", f"Q{j}") for i in range(6) for j in range(6)]
    doubles = {f"{p}+{q}": effect[p] + effect[q] + extra for p, q in pairs}
    trained = {name: doubles[name] for name in list(doubles)[::2]}
    held = {name: doubles[name] for name in list(doubles)[1::2]}
    training = make_summary({"control": np.zeros(80)} | effect | trained, 200, 0.01)
    truth = make_summary(held, targets=training.targets)
    found = b.baselines(training, truth.design, 200)
    error = {name: l2(p.mean, truth.mean).mean() for name, p in found.items()}
    assert error[b.KERNEL_RIDGE] < 0.2 * error[b.SCALED_SHRUNK]


@pytest.mark.parametrize("scale", [1.0, 0.85])
def test_sampling_noise_is_that_of_resampled_screens(scale: float, make_summary) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(2)
    variance = np.array([1.0, 2.0, 3.0, (39 * 1 + 29 * 2 + 19 * 3) / 87])  # of A+B: pooled over the others
    cells, repeats = np.array([40, 30, 20, 25]), 40_000
    x = rng.normal(size=(repeats, 4)) * np.sqrt(variance / cells)  # measured control, A, B, A+B, no effects
    spread = (x[:, 0] + scale * (x[:, 1] + x[:, 2] - 2 * x[:, 0]) - x[:, 3]).var()
    training = make_summary({"control": [0.0], "A": [0.0], "B": [0.0]}, cells[:3], variance[:3, None])
    effects = single_effects(training)
    found = b._sampling_noise(effects, b.request(effects, [[1, 1]], cells[3]), scale)
    assert found[0, 0] == pytest.approx(spread, rel=0.03)


def test_interaction_variance_is_recovered_and_never_negative() -> None:
    rng = np.random.default_rng(3)
    noise = np.full((400, 50), 0.5)
    tau2 = rng.uniform(0.5, 2, size=50)
    pairs = np.where(np.arange(400) % 2, 1, 3)
    residuals = rng.normal(size=(400, 50)) * np.sqrt(noise + pairs[:, None] * tau2)
    cells = rng.uniform(0, 2, size=50)
    found = b.interaction_variance(residuals, noise, pairs, cells, prior=0.0)
    assert np.abs(found / tau2 - 1).mean() < 0.12
    none = np.zeros(50)
    np.testing.assert_array_equal(b.interaction_variance(0 * residuals, noise, pairs, cells), none)
    np.testing.assert_array_equal(b.interaction_variance(residuals[:0], noise[:0], pairs[:0], cells), none)
    one = b.interaction_variance(residuals[:1], noise[:1], pairs[:1], cells)
    raw = b.interaction_variance(residuals[:1], noise[:1], pairs[:1], cells, prior=0.0)
    np.testing.assert_allclose(one, (raw + 4 * cells * raw.sum() / cells.sum()) / 5)


def test_probabilistic_additive_is_calibrated_where_its_story_holds(make_summary) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(4)
    targets, genes, cells = [f"T{i:02d}" for i in range(14)], 50, 30
    mu = {name: rng.normal(size=genes) for name in targets}
    pairs = [(p, q) for i, p in enumerate(targets) for q in targets[i + 1 :]]
    tau = rng.uniform(0.2, 0.6, size=genes)
    world = {"control": np.zeros(genes)} | mu
    world |= {f"{p}+{q}": mu[p] + mu[q] + tau * rng.normal(size=genes) for p, q in pairs}
    measured = {name: value + rng.normal(size=genes) / np.sqrt(cells) for name, value in world.items()}
    names = list(measured)
    held = [name for name in names if "+" in name][::2]
    training = make_summary({name: measured[name] for name in names if name not in held}, cells)
    truth = make_summary({name: measured[name] for name in held}, cells, targets=training.targets)
    predictions = b.baselines(training, truth.design, cells) | b.oracle_baselines(training, truth)
    scores = evaluate(truth, predictions, (training.mean[0], training.variance[0], cells))
    table = scores.table(resamples=200).set_index(["method", "metric"])["mean"]
    for method in (f"probabilistic {b.ADDITIVE}", f"probabilistic {b.ADDITIVE}{b.ORACLE}"):
        assert table[method, "coverage_90"] == pytest.approx(0.9, abs=0.02)
        assert table[method, "coverage_50"] == pytest.approx(0.5, abs=0.03)
    blind = b.baselines(training.restrict(["control", *targets]), truth.design, cells)
    noise_only = blind[f"probabilistic {b.ADDITIVE}{b.NOISE_ONLY}"].sd
    assert noise_only is not None
    np.testing.assert_allclose(noise_only, 2 / np.sqrt(cells))


def test_own_mean_stands_only_where_every_condition_was_trained(singles) -> None:  # type: ignore[no-untyped-def]
    found = b.baselines(singles, [[0, 1, 0], [1, 0, 0]], 50)
    np.testing.assert_allclose(found[b.OWN_MEAN].mean, CONTROL + [EFFECT["B"], EFFECT["A"]])
    assert b.OWN_MEAN not in b.baselines(singles, [[0, 1, 0], [1, 1, 0]], 50)
    assert b.OWN_MEAN not in b.baselines(singles, [[0, 1]], 50, targets=("A", "unknown"))


def test_tiny_screens_have_baselines_too(make_summary) -> None:  # type: ignore[no-untyped-def]
    lonely = make_summary({"control": [0.0, 0.0], "A": [1.0, 0.0], "A+B": [1.0, 1.0]}, 1, 0.0)
    for prediction in b.baselines(lonely, [[1, 1], [0, 1]], 1).values():
        assert np.isfinite(prediction.mean).all()
    only_pairs = make_summary({"control": [0.0, 0.0], "A+B": [1.0, 1.0]})
    np.testing.assert_array_equal(b.baselines(only_pairs, [[1, 1]], 9)[b.ADDITIVE].mean, [[0.0, 0.0]])


def test_bad_requests_are_refused(singles, make_summary) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="no control cells"):
        b.baselines(make_summary(means("A", "B")), [[1, 1]], 50)
    with pytest.raises(ValueError, match="columns"):
        b.baselines(singles, [[1, 1]], 50)
    with pytest.raises(ValueError, match="one cell"):
        b.baselines(singles, [[1, 1, 0]], 0)


def test_every_baseline_is_described() -> None:
    modules = (b, simple)
    names = {v for one in modules for key, v in vars(one).items() if key.isupper() and isinstance(v, str)}
    assert names - {b.NOISE_ONLY, b.ORACLE} == set(b.DESCRIPTIONS)


@pytest.mark.parametrize(
    ("n_targets", "seen", "name"),
    [(0, 0, "control"), (1, 1, "seen"), (1, 0, "unseen"), (2, 2, "both seen"), (2, 1, "one unseen")]
    + [(2, 0, "both unseen"), (3, 3, "all seen"), (3, 2, "one unseen"), (3, 1, "2 of 3 unseen")],
)
def test_strata_have_names(n_targets: int, seen: int, name: str) -> None:
    assert stratum(n_targets, seen) == name


@pytest.mark.parametrize(
    "kwargs",
    [
        {"mean": np.zeros(3)},
        {"mean": np.zeros((2, 3)), "sd": np.ones((2, 2))},
        {"mean": np.zeros((2, 3)), "sd": -np.ones((2, 3))},
        {"mean": np.zeros((2, 3)), "draws": np.zeros((4, 3, 2))},
        {"mean": np.full((2, 3), np.nan)},
        {"mean": np.zeros((2, 3)), "sd": np.full((2, 3), np.inf)},
    ],
)
def test_impossible_predictions_are_refused(kwargs: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError):
        Prediction(**kwargs)


@pytest.fixture(scope="module")
def norman_parts(norman):  # type: ignore[no-untyped-def]
    doubles = [name for name in norman.conditions if "+" in name]
    rest = [name for name in norman.conditions if "+" not in name]
    return norman, rest, doubles, [name for name in doubles if parity(name) == "odd"]


def scored(norman, trained: list[str], held: list[str]):  # type: ignore[no-untyped-def]
    """L2, delta Pearson of every baseline, and the CRPS and 90 % coverage of the oracle versions."""
    training, truth = norman.restrict(trained), norman.restrict(held)
    predictions = b.baselines(training, truth.design, truth.n_cells, truth.targets)
    predictions |= b.oracle_baselines(training, truth)
    reference = training.mean[0], training.variance[0], int(training.n_cells[0])
    table = evaluate(truth, predictions, reference).table("both seen", resamples=100)
    print(table.pivot(index="method", columns="metric", values="mean").round(4).to_string())
    return table.set_index(["method", "metric"])["mean"]


def check(found, method: str, distance: float, correlation: float | None = None) -> None:  # type: ignore[no-untyped-def]
    assert found[method, "l2"] == pytest.approx(distance, abs=0.015)
    if correlation is not None:
        assert found[method, "delta_pearson"] == pytest.approx(correlation, abs=0.0015)


def test_norman_numbers_on_all_doubles(norman_parts) -> None:  # type: ignore[no-untyped-def]
    norman, rest, doubles, _ = norman_parts
    found = scored(norman, rest, doubles)
    assert len(doubles) == 76
    check(found, b.NO_CHANGE, 8.13, 0.0)
    check(found, b.MEAN_OF_SINGLES, 4.71, 0.832)
    check(found, b.ADDITIVE, 5.09, 0.832)
    check(found, b.LOW_RANK, 4.68, 0.858)
    check(found, b.LOW_RANK_PRIOR, 4.20, 0.858)
    check(found, b.SHRUNK_PRIOR, 4.06, 0.867)
    assert found[f"probabilistic {b.ADDITIVE}{b.ORACLE}", "crps"] == pytest.approx(0.1098, abs=5e-4)


def test_norman_numbers_on_odd_doubles(norman_parts) -> None:  # type: ignore[no-untyped-def]
    norman, rest, _, odd = norman_parts
    found = scored(norman, rest, odd)
    assert len(odd) == 35
    check(found, b.ADDITIVE, 5.18, 0.839)
    check(found, b.LOW_RANK, 4.84, 0.861)
    check(found, b.LOW_RANK_PRIOR, 4.43, 0.861)
    check(found, b.SHRUNK, 4.59, 0.869)
    check(found, b.SHRUNK_PRIOR, 4.29, 0.869)
    for name, crps in ((b.ADDITIVE, 0.1118), (b.SHRUNK_PRIOR, 0.0921)):
        assert found[f"probabilistic {name}{b.ORACLE}", "crps"] == pytest.approx(crps, abs=5e-4)
        assert found[f"probabilistic {name}{b.ORACLE}", "coverage_90"] == pytest.approx(0.905, abs=0.01)


def test_norman_numbers_with_even_doubles_in_training(norman_parts) -> None:  # type: ignore[no-untyped-def]
    norman, rest, doubles, odd = norman_parts
    found = scored(norman, rest + [name for name in doubles if name not in odd], odd)
    check(found, b.SCALED_SHRUNK, 4.21, 0.879)
    assert found[b.KERNEL_RIDGE, "l2"] <= 3.80
    assert found[b.KERNEL_RIDGE, "delta_pearson"] >= 0.885
    assert found[f"probabilistic {b.KERNEL_RIDGE}{b.ORACLE}", "crps"] <= 0.0825
    assert found[f"probabilistic {b.KERNEL_RIDGE}", "crps"] <= 0.0825


def test_norman_floor(norman_parts) -> None:  # type: ignore[no-untyped-def]
    norman, _, doubles, _ = norman_parts
    truth = norman.restrict(doubles)
    floor = half_replicate_floor(truth, norman.mean[0])
    assert floor.perfect_l2.mean() == pytest.approx(1.79, abs=0.02)
    assert floor.replicate_l2.mean() == pytest.approx(1.79 * np.sqrt(2), abs=0.03)
    raw = delta_pearson(truth.halves[0], truth.halves[1], norman.mean[0])[0]
    assert (floor.replicate_delta_pearson >= raw).all()
    print(floor.perfect_l2.mean(), floor.replicate_l2.mean(), floor.perfect_delta_pearson.mean())
