"""New cells beside measured ones: a perfect sampler gets the floor, a collapsed one does not, densities are their formula."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pvae_pyro.errors import InputError
from pvae_pyro.evaluation.baselines import ADDITIVE
from pvae_pyro.evaluation.effects import cell_variance
from pvae_pyro.inference import Fit, FitSettings, fit
from pvae_pyro.report import evaluate_run
from pvae_pyro.report.cells import AROUND_ADDITIVE, AROUND_OWN, OTHER_HALF, cells_section, score_cells
from pvae_pyro.report.scoring import MODEL, Scored, score
from pvae_pyro.screen import Screen
from pvae_pyro.simulate import simulate
from pvae_pyro.splits import split_screen
from pvae_pyro.story import PerturbedVAE


@pytest.fixture(scope="module")
def parts() -> tuple[Screen, Screen]:
    world = simulate("default", seed=1, targets=5, doubles=5, controls=150, cells_per_condition=80, genes=40)
    split = split_screen(Screen.from_anndata(world.adata, "condition"), train="singles")
    assert split.held_out is not None
    return split.train, split.held_out


@pytest.fixture(scope="module")
def fitted(parts: tuple[Screen, Screen]) -> Fit:
    how = {"settings": FitSettings(epochs=1), "device": "cpu", "progress": False}
    return fit(PerturbedVAE(background=2, hidden=0), parts[0], known_targets=parts[1].targets, **how)


@pytest.fixture(scope="module")
def scored(fitted: Fit, parts: tuple[Screen, Screen]) -> Scored:
    return score(fitted, parts[1].summary(), 40, 0)


class Sampler:
    """Draws cells by a rule of its own."""

    def __init__(self, rule: Any, genes: np.ndarray) -> None:
        self.rule, self.genes = rule, genes

    def predict(self, names: list[str], **_: Any) -> Any:
        return SimpleNamespace(
            genes=self.genes, new_cells=self.rule, cell_log_density=lambda _, x, genes: np.full(len(x), -1.0 * len(genes))
        )


def means(rows: pd.DataFrame) -> Any:
    return rows.groupby(["method", "metric"])["value"].mean()


def test_a_perfect_sampler_gets_the_floor_and_a_collapsed_one_does_not(
    scored: Scored, parts: tuple[Screen, Screen]
) -> None:
    cells, rng = parts[1], np.random.default_rng(0)

    def measured(name: str, n: int, seed: int) -> np.ndarray:
        rows = np.flatnonzero(cells.condition == cells.conditions.index(name))
        return np.asarray(cells.expression[rng.choice(rows, n)].toarray())

    def collapsed(name: str, n: int, seed: int) -> np.ndarray:
        return np.tile(measured(name, 1000, 0).mean(axis=0), (n, 1))

    perfect, flat = (means(score_cells(Sampler(rule, cells.genes), scored, cells)) for rule in (measured, collapsed))
    floor = perfect[OTHER_HALF, "cell_energy_distance"]
    # the bootstrap draws half of the scored cells themselves, so it may be below the floor, not far above it
    assert perfect[MODEL, "cell_energy_distance"] < floor + 0.05 < flat[MODEL, "cell_energy_distance"] - 0.5
    assert perfect[MODEL, "cell_spread_ratio"] == pytest.approx(1, abs=0.15)
    assert flat[MODEL, "cell_spread_ratio"] < 1e-6
    assert perfect[MODEL, "cell_log_density"] == -1.0, "per gene"
    assert (OTHER_HALF, "cell_log_density") not in perfect.index


def test_normal_laws_are_their_formula(fitted: Fit, scored: Scored, parts: tuple[Screen, Screen]) -> None:
    rows = score_cells(fitted, scored, parts[1], draws=5).set_index(["method", "metric", "condition"])["value"]
    name = scored.truth.conditions[0]
    cells = parts[1].expression[parts[1].condition == parts[1].conditions.index(name)].toarray().astype(float)
    variance = cell_variance(scored.training)
    used = variance > 0
    centre = scored.predictions[ADDITIVE].mean[0]
    every = -0.5 * ((cells - centre) ** 2 / variance + np.log(2 * np.pi * variance))[:, used]
    # of all cells; half of them are scored
    error = every.mean(axis=1).std() / np.sqrt(len(cells) / 2)
    assert rows[AROUND_ADDITIVE, "cell_log_density", name] == pytest.approx(every.mean(), abs=4 * error)
    assert rows[AROUND_OWN, "cell_log_density", name] > rows[AROUND_ADDITIVE, "cell_log_density", name] - 2 * error
    again = score_cells(fitted, scored, parts[1], draws=5).set_index(["method", "metric", "condition"])["value"]
    pd.testing.assert_series_equal(rows, again)


def test_the_report_gets_a_section_and_further_rows(
    fitted: Fit, parts: tuple[Screen, Screen], scored: Scored, tmp_path: Path
) -> None:
    path = evaluate_run(fitted, parts[1].summary(), tmp_path / "report", draws=40, cells=parts[1])
    rows = pd.read_csv(path.parent / "metrics.csv")
    extra = rows[rows["metric"].str.startswith("cell_")]
    pd.testing.assert_frame_equal(rows.drop(extra.index), scored.scores.rows.reset_index(drop=True), check_dtype=False)
    assert set(extra["condition"]) == set(scored.truth.conditions) and set(extra["stratum"]) == {"both seen"}
    section = path.read_text().split("## Cells")[1]
    value = extra[(extra["method"] == MODEL) & (extra["metric"] == "cell_log_density")]["value"].mean()
    assert f"| **{MODEL}** | {value:.3g} (" in section


def test_conditions_of_few_cells_are_left_out(fitted: Fit, scored: Scored, parts: tuple[Screen, Screen]) -> None:
    first, second = scored.truth.conditions[:2]
    position = parts[1].condition
    rows_of = [np.flatnonzero(position == parts[1].conditions.index(one)) for one in (first, second)]
    keep = np.concatenate([rows_of[0][:19], rows_of[1][:20]])
    rows = score_cells(fitted, scored, parts[1].cells(np.sort(keep)), draws=5)
    assert set(rows["condition"]) == {second}
    assert "New cells of 1 condition, both seen" in cells_section(rows, "both seen")
    assert "No condition of the stratum 'seen'" in cells_section(rows, "seen")
    with pytest.raises(InputError, match="20 cells or more"):
        score_cells(fitted, scored, parts[1].cells(np.sort(keep[:19])), draws=5)
