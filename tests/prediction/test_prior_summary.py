"""What a prior expects, in numbers: brute force on its cells, exact where the story is linear, unbiased where measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import pvae_pyro as pv
from pvae_pyro.prediction import prior_summary as room
from pvae_pyro.report.prior_plot import prior_figure
from pvae_pyro.simulate import SimulatedScreen
from pvae_pyro.simulate import simulate as world

SILENT = pv.Interaction(width=0.0, outside=0.0, stretch=0.0)
LINEAR: dict[str, Any] = {"likelihood": pv.Gaussian(link="identity"), "composition": pv.Additive()}
PAIRS = pv.ScreenPlan({"control": 1, "A": 1, "B": 1, "C@0.5": 1, "A+B": 1, "A+B+C": 1}, genes=40, effect=4.0)


def model(**parts: Any) -> pv.PerturbedVAE:
    """Every target acts: of two that need not, most draws are of a screen without effects."""
    return pv.PerturbedVAE(responsive=6, background=2, hidden=0, **{"effects": pv.SpikeSlab(activity_strength=0), **parts})


@pytest.mark.parametrize("penetrance", [{}, {"penetrance": pv.Mixture()}], ids=["all respond", "some escape"])
@pytest.mark.parametrize("likelihood", [pv.Gaussian(), pv.NegativeBinomial()], ids=["gaussian", "counts"])
def test_shares_and_lengths_are_those_of_many_simulated_cells(likelihood: Any, penetrance: Any) -> None:
    """The first draw of a summary is the truth of the cells of the same seed: 20,000 of each condition leave little noise."""
    conditions = ["control", "A", "B", "A+B"]
    plan = pv.ScreenPlan(dict.fromkeys(conditions, 20_000), genes=40, loading=1.0, effect=2.5, noise=0.1)
    chosen = model(likelihood=likelihood, **penetrance)
    adata = chosen.simulate(plan, seed=2).adata
    x = adata.layers.get("drawn", adata.X)
    x = x if isinstance(x, np.ndarray) else np.log1p(x.toarray() * (1e4 / plan.library))
    names = adata.obs["condition"].to_numpy()
    control, a, b, pair = (x[names == name].mean(0, dtype=float) for name in conditions)
    found = chosen.prior_summary(plan, draws=2, seed=2)
    shift = np.stack([a, b]) - control
    np.testing.assert_allclose(found.sizes[0], np.linalg.norm(shift, axis=1), rtol=0.03)
    departure = np.linalg.norm(pair - a - b + control) / np.linalg.norm(shift.sum(0))
    np.testing.assert_allclose(found.non_additivity[0], departure, rtol=0.03)
    for drawn, seen in ((found.above_singles[0], shift), (found.above_combinations[0], pair - control)):
        share = [(np.abs(seen) > size).mean() for size in room.SIZES]
        np.testing.assert_allclose(drawn, share, atol=0.06)  # a gene or two may stand at a limit
        assert 0 < np.interp(1.0, room.SIZES, share) < 1
    assert found.above_singles[1][5] != found.above_singles[0][5]


def test_what_is_drawn_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = model()
    whole = chosen.prior_summary(PAIRS, draws=6, seed=1)
    np.testing.assert_allclose(chosen.prior_summary(PAIRS, draws=2, seed=1).sizes, whole.sizes[:2], rtol=1e-6)
    monkeypatch.setattr(room, "_ROOM", 1000)
    parts = chosen.prior_summary(PAIRS, draws=6, seed=1)
    for name in ("sizes", "non_additivity", "active", "above_singles", "above_combinations"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
    assert not np.allclose(chosen.prior_summary(PAIRS, draws=2, seed=2).sizes, whole.sizes[:2])


def test_pairs_that_the_screen_lacks_are_drawn_anew_in_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without combinations all pairs of targets are asked for, and their interactions differ between draws and between parts."""
    monkeypatch.setattr(room, "_ROOM", 1)
    chosen = model(effects=pv.NormalEffects(), graph=pv.NoGraph(), **LINEAR)
    plan = pv.ScreenPlan({"control": 1, "A": 1, "B": 1, "C": 1}, genes=40)
    found = chosen.prior_summary(plan, draws=40)
    assert found.non_additivity.shape == (40, 3) and "pairs of targets" in str(found)
    assert len(np.unique(found.non_additivity)) == 120
    assert np.abs(np.corrcoef(found.non_additivity[:-1, 0], found.non_additivity[1:, 0])[0, 1]) < 0.5


def test_addition_without_interactions_has_no_departure_where_the_story_is_linear() -> None:
    linear = model(interaction=SILENT, **LINEAR).prior_summary(PAIRS, draws=20)
    assert linear.non_additivity.shape == (20, 2)
    assert np.nanmax(linear.non_additivity) < 1e-4 and np.isfinite(linear.non_additivity).mean() > 0.8
    bent = model(interaction=SILENT, composition=pv.Additive()).prior_summary(PAIRS, draws=20)
    scaled = model(interaction=SILENT, likelihood=LINEAR["likelihood"], composition=pv.Additive(scale=0.75)).prior_summary(PAIRS)
    assert np.median(bent.non_additivity) > 1e-3  # the link alone
    np.testing.assert_allclose(scaled.non_additivity[np.isfinite(scaled.non_additivity)], 0.25, atol=1e-4)


def test_a_sum_of_nothing_has_no_departure() -> None:
    """One latent, hardly ever open: draws in which neither single does anything are undefined, and only those."""
    plan = pv.ScreenPlan({"control": 1, "A": 1, "B": 1, "A+B": 1}, genes=10, effect=4.0)
    chosen = pv.PerturbedVAE(responsive=1, background=2, effects=pv.SpikeSlab(inclusion=0.2), interaction=SILENT, **LINEAR)
    found = chosen.prior_summary(plan, draws=60)
    undefined = np.isnan(found.non_additivity[:, 0])
    np.testing.assert_array_equal(undefined, found.sizes.max(1) < 1e-4)
    assert 0 < undefined.sum() < 60 and found.table.loc["non_additivity"].drop("measured").notna().all()
    assert prior_figure(found).axes[3].lines  # what is defined is drawn


def test_twice_the_scale_is_twice_the_shift_where_the_story_is_linear() -> None:
    cells = {"control": 1, "A": 1, "B": 1, "A+B": 1}
    once, twice = (model(**LINEAR).prior_summary(pv.ScreenPlan(cells, effect=size), draws=8, seed=5) for size in (2.0, 4.0))
    np.testing.assert_allclose(twice.sizes, 2 * once.sizes, rtol=1e-3)
    assert twice.table.loc["size", "mean"] == pytest.approx(2 * once.table.loc["size", "mean"], rel=1e-3)
    softer = model(**LINEAR | {"likelihood": pv.Gaussian()}).prior_summary(pv.ScreenPlan(cells, effect=80.0), draws=8, seed=5)
    assert softer.sizes.sum() < 0.9 * 40 * once.sizes.sum()  # below zero nothing is expressed


def test_the_size_of_a_single_is_what_the_prior_says() -> None:
    """Orthonormal loadings, no graph: E |shift|^2 = loading^2 effect^2 K E[tau^2] for dense effects."""
    plan = pv.ScreenPlan({"control": 1} | {f"T{i:02d}": 1 for i in range(40)}, genes=40, loading=0.7, effect=2.0)
    chosen = model(effects=pv.NormalEffects(scale_spread=0.05), graph=pv.NoGraph(), **LINEAR)
    found = chosen.prior_summary(plan, draws=60)
    expected = 0.7**2 * 2.0**2 * 6 * np.exp(2 * 0.05**2)
    # 2400 sums of six squares; tau is common to the 40 of a draw and hardly varies
    error = expected * np.sqrt(2 / 6 / 2400 + (2 * 0.05) ** 2 / 6 / 60)
    assert abs((found.sizes**2).mean() - expected) < 4 * error
    assert found.active.mean() == pytest.approx(6 * 0.96, abs=0.05)  # P(|Normal(0, 2)| > 0.1) = 0.960


def test_the_table_is_of_the_arrays() -> None:
    found = model().prior_summary(PAIRS, draws=30)
    at_one = int(np.flatnonzero(room.SIZES == 1.0)[0])
    arrays = {"share_above_1_singles": found.above_singles[:, at_one], "active_latents": found.active.mean(1),
              "size": np.median(found.sizes, 1), "non_additivity": np.nanmedian(found.non_additivity, 1)}  # fmt: skip
    for name, draws in arrays.items():
        expected = [draws.mean(), *np.quantile(draws, [0.05, 0.95])]
        np.testing.assert_allclose(found.table.loc[name, ["mean", "q05", "q95"]].astype(float), expected)
    assert found.table["measured"].isna().all()
    text = str(found).splitlines()
    assert text[0].startswith("Prior of 3 singles and 2 combinations, 30 draws") and "assumed, not measured" in text[0]
    assert len(text) == 8 and all(line.endswith(".") for line in text) and "nan" not in str(found)
    assert f"{found.table.loc['size', 'mean']:.3g}" in str(found)


@pytest.fixture(scope="module")
def linear_world() -> SimulatedScreen:
    return world("linear-gaussian", seed=3, targets=12, doubles=20, genes=60, controls=400, cells_per_condition=40,
                 interaction=0.7, gate_probability=0.5)  # fmt: skip


def test_measured_lengths_are_free_of_sampling_noise(linear_world: SimulatedScreen) -> None:
    screen, truth = pv.Screen.from_anndata(linear_world.adata, "condition"), linear_world.truth
    assert truth.condition_mean is not None
    found = model(graph=pv.NoGraph()).prior_summary(screen, draws=3)
    singles = [c for c in screen.conditions if c != "control" and "+" not in c]
    true = {c: truth.condition_mean[truth.index(c)] - truth.condition_mean[0] for c in screen.conditions}
    exact = np.array([true[c] @ true[c] for c in singles])
    seen = screen.summary()
    raw = np.array([((seen.mean[seen.index(c)] - seen.mean[0]) ** 2).sum() for c in singles])
    assert (raw - exact).mean() > 0.5  # plain lengths are longer than the truth
    error = (found.measured["sizes"] ** 2 - exact).std(ddof=1) / np.sqrt(len(singles))
    assert abs((found.measured["sizes"] ** 2 - exact).mean()) < 3 * error
    pairs = [c for c in screen.conditions if "+" in c]
    added = [sum(true[t] for t in c.split("+")) for c in pairs]
    departure = np.array([np.linalg.norm(true[c] - a) / np.linalg.norm(a) for c, a in zip(pairs, added, strict=True)])
    gap = np.sign(found.measured["non_additivity"]) * found.measured["non_additivity"] ** 2 - departure**2
    assert abs(np.median(gap)) < 3 * 1.25 * gap.std(ddof=1) / np.sqrt(len(gap))
    assert found.table.loc["non_additivity", "measured"] == pytest.approx(np.median(departure), abs=0.1)
    share = np.mean([(np.abs(seen.mean[seen.index(c)] - seen.mean[0]) > 1).mean() for c in singles])
    assert found.table.loc["share_above_1_singles", "measured"] == pytest.approx(share)
    ratio = found.table.loc["size", "mean"] / np.median(found.measured["sizes"])
    assert f"{ratio:.2g} times what was measured" in str(found)


def test_pairs_of_singles_that_were_not_measured_are_not_compared(linear_world: SimulatedScreen) -> None:
    screen = pv.Screen.from_anndata(linear_world.adata, "condition")
    pairs = [c for c in screen.conditions if "+" in c]
    lost = pairs[0].split("+")[0]
    part = screen.restrict([c for c in screen.conditions if c != lost])
    found = model(graph=pv.NoGraph()).prior_summary(part, draws=2)
    assert found.non_additivity.shape[1] == len(pairs)  # its effect is in the prior nevertheless
    assert len(found.measured["non_additivity"]) == sum(lost not in c.split("+") for c in pairs) < len(pairs)


def test_refusals() -> None:
    for draws in (0, 2.5, True):
        with pytest.raises(pv.InputError, match="draws"):
            model().prior_summary(PAIRS, draws=draws)  # type: ignore[arg-type]
    with pytest.raises(pv.InputError, match="ScreenPlan"):
        model().prior_summary({"control": 3})  # type: ignore[arg-type]


def _only_singles(made: SimulatedScreen) -> Figure:
    screen = pv.Screen.from_anndata(made.adata, "condition")
    singles = screen.restrict([c for c in screen.conditions if "+" not in c])
    return prior_figure(model(graph=pv.NoGraph()).prior_summary(singles, draws=3))


def test_the_figure_shows_the_arrays_and_can_be_read_in_grey(linear_world: SimulatedScreen, tmp_path: Path) -> None:
    found = model(graph=pv.NoGraph()).prior_summary(pv.Screen.from_anndata(linear_world.adata, "condition"), draws=12)
    figure = prior_figure(found)
    genes, lengths, active, pairs = figure.axes
    drawn = {line.get_label(): line for ax in figure.axes for line in ax.lines if not str(line.get_label()).startswith("_")}
    middle = np.median(found.above_singles, 0)
    np.testing.assert_allclose(drawn["prior, singles"].get_ydata(), np.where(middle > 0, middle, np.nan))
    np.testing.assert_allclose(sorted(lengths.lines[-1].get_xdata()), np.sort(found.measured["sizes"]))
    assert sum(bar.get_height() for bar in active.patches) == pytest.approx(1.0)
    for ax in figure.axes:
        looks = [(line.get_linestyle(), line.get_marker()) for line in ax.lines if not str(line.get_label()).startswith("_")]
        assert len(set(looks)) == len(looks)  # told apart without colour
        assert ax.get_xlabel() and ax.get_ylabel()
    assert "log scale" in genes.get_xlabel() and "L2" in lengths.get_xlabel() and "control-cell sd" in active.get_xlabel()
    assert "sum of the singles" in pairs.get_xlabel()
    labels = [line.get_label() for line in _only_singles(linear_world).axes[0].lines]
    assert "measured, singles" in labels and "prior, combinations" in labels and "measured, combinations" not in labels
    found.plot(tmp_path / "prior.png")
    with Image.open(tmp_path / "prior.png") as image:
        assert image.size[0] > 900 and np.asarray(image.convert("L")).std() > 10
