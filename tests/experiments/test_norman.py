"""The Norman experiment: its split, its metrics, files in every layout, refusals, and that its documents are its results."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import pvae_pyro as pv
from experiments.filling import filled
from experiments.norman import __main__ as command
from experiments.norman import arms, publish
from experiments.norman.protocol import HELD_OUT, held_out_cells, prepare
from experiments.norman.published import TABLE_14, floor_squared
from experiments.norman.scoring import Cells, averaged, of_condition, shifted

HERE = Path(arms.__file__).parent
ROOT = HERE.parents[1]
LAYOUTS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "guide_ids": ("guide_ids", ",".join),
    "perturbation": ("perturbation", lambda t: "_".join(t) or "control"),
    "gears": ("condition", lambda t: "+".join(t if len(t) > 1 else [*t, "ctrl"]) if t else "ctrl"),
    "plain": ("condition", lambda t: "+".join(t) or "control"),
}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Simulated: 15 singles, the first 14 of which bear the names that are held out, and 6 doubles."""
    made = pv.simulate.simulate(seed=3, targets=15, doubles=6, controls=150, genes=50, cells_per_condition=90).adata
    targets = sorted({t for c in made.obs["condition"].unique() for t in c.split("+")} - {"control"})
    names = dict(zip(targets, [*HELD_OUT, "AHR"], strict=True))
    made.obs["targets"] = [",".join(names[t] for t in c.split("+") if t != "control") for c in made.obs["condition"]]
    return made


def write(cells: anndata.AnnData, path: Path, layout: str) -> Path:
    key, label = LAYOUTS[layout]
    labels = [label([t for t in targets.split(",") if t]) for targets in cells.obs["targets"]]
    obs = pd.DataFrame({key: labels, "gemgroup": cells.obs["batch"].to_numpy()}, index=cells.obs_names)
    anndata.AnnData(cells.X, obs, cells.var).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def screen(cells: anndata.AnnData) -> pv.Screen:
    made = anndata.AnnData(cells.X, cells.obs[["targets", "batch"]], cells.var)
    return pv.Screen.from_anndata(made, "targets", batch_key="batch")


@pytest.fixture(scope="module")
def arithmetic() -> dict[tuple[str, str], float]:
    return {(what, metric): value for what, metric, value in arms.arithmetic(0)}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.norman", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_a_perfect_sampler_scores_worse_than_a_collapsed_one(arithmetic: dict[tuple[str, str], float]) -> None:
    rows = arithmetic
    perfect, collapsed = "synthetic: perfect sampler", "synthetic: its mean, collapsed"
    assert rows[perfect, "rmse_cell_rel"] > 1.35 * rows[collapsed, "rmse_cell_rel"]
    assert rows[perfect, "rmse_cell_rel"] > rows["synthetic: mean 10 % too large", "rmse_cell_rel"]
    assert rows[perfect, "energy_distance"] < 0.05 * rows[collapsed, "energy_distance"]
    for what, formula in ((perfect, "perfect_sampler"), (collapsed, "floor")):
        assert rows[what, "rmse_cell_rel"] == pytest.approx(rows["synthetic: formula", formula], rel=0.01)
    first = re.sub(r"\s+", " ", (HERE / "README.md").read_text(encoding="utf-8").split("\n\n")[0])
    assert "a perfect sampler scores worse than a collapsed one" in first


def test_published_rows_share_one_floor_but_for_gears() -> None:
    f = {name: floor_squared(row["rmse_cell_rel"], row["rmse_pb_rel"]) for name, row in TABLE_14.items()}
    assert f["Additive"] == pytest.approx(f["PerturbedVAE"], abs=0.001)
    assert f["Additive"] ** 0.5 == pytest.approx(0.435, abs=5e-4)
    assert f["GEARS"] == pytest.approx(0.328, abs=5e-4)
    # of a mean predictor: the cell error follows from the error of its mean and the floor
    for row in (TABLE_14["Additive"], TABLE_14["PerturbedVAE"]):
        share = f["Additive"]
        assert (share + row["rmse_pb_rel"] ** 2 * (1 - share)) ** 0.5 == pytest.approx(row["rmse_cell_rel"], abs=1e-3)


@pytest.mark.parametrize(("n", "held"), [(2000, 96), (192, 96), (191, 64), (128, 64), (127, 32), (64, 32), (63, 0)])
def test_held_out_cells_are_whole_batches_that_leave_half(n: int, held: int) -> None:
    assert held_out_cells(n) == held


def test_the_split_keeps_doubles_and_the_first_cells_of_singles_out(screen: pv.Screen) -> None:
    task = prepare(screen)
    sizes = dict(zip(screen.conditions, np.bincount(screen.condition).tolist(), strict=True))
    assert not any("+" in c for c in task.train.conditions)
    assert task.sets["singles"] == [n for n in HELD_OUT if sizes[n] >= 64]
    assert len(task.sets["doubles"]) == 6 and set(task.sets["odd doubles"]) < set(task.sets["doubles"])
    assert task.train.n_cells + task.test.n_cells == screen.n_cells
    own = screen.expression[screen.condition == screen.conditions.index("KLF1")].toarray()
    held = held_out_cells(len(own))
    for part, expected in ((task.test, own[:held]), (task.train, own[held:])):
        np.testing.assert_array_equal(part.expression[part.condition == part.conditions.index("KLF1")].toarray(), expected)
    # genes are chosen on training cells, and no test cell may move them
    assert task.train.genes.tolist() == task.test.genes.tolist() == screen.genes.tolist()


def test_singles_are_the_largest_where_no_name_is_known(cells: anndata.AnnData) -> None:
    renamed = cells.copy()
    renamed.obs["targets"] = [",".join(f"X{t}" for t in v.split(",") if t) for v in cells.obs["targets"]]
    task = prepare(pv.Screen.from_anndata(renamed, "targets"))
    n = renamed.obs["targets"].value_counts()
    singles = n[[v for v in n.index if v and "," not in v]]
    assert set(task.sets["singles"]) <= set(singles.sort_values(ascending=False).index[:14])


def test_doubles_of_untrained_targets_stand_apart(screen: pv.Screen) -> None:
    without = screen.restrict([c for c in screen.conditions if c != "AHR"])
    task = prepare(without)
    known = [c for c in screen.conditions if "+" in c and "AHR" not in c]
    assert task.sets["doubles"] == known
    assert (len(known) < 6) == ("all doubles" in task.sets)


def test_batches_are_whole_and_averaged_within_conditions(screen: pv.Screen) -> None:
    data = Cells(prepare(screen))
    row = data.truth.index(data.task.sets["doubles"][0])
    real = data.measured(row)[:70]
    guess = np.full_like(real, 0.3)
    found = of_condition(data, row, real, guess)
    each = [np.sqrt(((real[b] - 0.3) ** 2).mean() / (real[b] ** 2).mean()) for b in (slice(0, 32), slice(32, 64))]
    assert found["rmse_cell_rel"] == pytest.approx(np.mean(each))
    assert found["rmse_cell_rel_whole"] == pytest.approx(np.sqrt(((real - 0.3) ** 2).mean() / (real**2).mean()))
    assert np.isnan(of_condition(data, row, real[:31], guess[:31])["rmse_cell_rel"])
    x = real.mean(axis=0)
    assert found["rmse_pb_rel"] == pytest.approx(np.linalg.norm(x - 0.3) / np.linalg.norm(x))
    # relative errors of a mean predictor: cells' share plus that of the mean
    w, m2 = real.var(axis=0).mean(), (x**2).mean()
    expected = w / (w + m2) + found["rmse_pb_rel"] ** 2 * (1 - w / (w + m2))
    assert found["rmse_cell_rel_whole"] ** 2 == pytest.approx(expected)


def test_no_cell_stands_in_for_itself() -> None:
    numbers = np.arange(64)[:, None]
    moved = shifted(numbers)
    assert sorted(moved.ravel().tolist()) == list(range(64))
    assert not set(moved[:32].ravel().tolist()) & set(range(32))


def test_standard_errors_are_over_conditions_without_correction() -> None:
    table = pd.DataFrame({"condition": ["A", "B", "C"], "method": "m", "metric": "rmse_cell_rel", "value": [1.0, 3.0, np.nan]})
    rows = {(what, k): v for what, k, v in averaged(table, {"singles": ["A", "B", "C"]})}
    assert rows["m [singles]", "rmse_cell_rel"] == 2.0
    assert rows["m [singles]", "rmse_cell_rel_se"] == pytest.approx(1 / np.sqrt(2))


def test_every_layout_gives_the_same_scores(cells: anndata.AnnData, tmp_path: Path) -> None:
    rows = [arms.rules(write(cells, tmp_path / f"{name}.h5ad", name), None, 0) for name in LAYOUTS]
    assert len(rows[0]) > 300
    assert all(other == rows[0] for other in rows[1:])


def test_the_command_takes_a_file_of_the_user(
    cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(cells, tmp_path / "screen.h5ad", "perturbation")
    out = tmp_path / "out"
    done = run("--data", path, "--arm", "full rules", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "singles: 15 (paper 105, CPA's file 105, scPerturb's file 105)" in done.stdout
    results = pd.read_csv(out / "results.csv")
    assert set(results["arm"]) == {"full rules"} and {"arm", "metric", "seed", "value"} <= set(results.columns)
    page = (out / "tables.md").read_text(encoding="utf-8")
    assert "your file: RMSE" in page and "| additive | 0.4424, - |" in page and "0.5714 ± 0.0105" in page
    assert (out / "scores.png").stat().st_size > 5000
    monkeypatch.setattr(sys, "argv", ["norman", "--data", str(tmp_path / "other.h5ad"), "--out", str(out)])
    with pytest.raises(pv.InputError, match="results of another file, .*screen.h5ad"):
        command.main()


def test_what_the_protocol_cannot_be_run_on_is_refused(
    cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(cells, tmp_path / "screen.h5ad", "plain")
    whole = anndata.read_h5ad(path)
    scaled = whole.copy()
    scaled.X = scaled.X.toarray() * 1.5
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    whole[~whole.obs["condition"].str.contains("+", regex=False)].write_h5ad(tmp_path / "singles.h5ad")
    refusals: list[tuple[list[str | Path], str]] = [
        (["--data", tmp_path / "scaled.h5ad"], "ends at 9.21; give raw counts or their log"),
        (["--data", tmp_path / "singles.h5ad"], "it has no double"),
        (["--data", path, "--key", "cell_line"], "no obs column 'cell_line'"),
        (["--data", tmp_path / "nowhere.h5ad"], "does not exist"),
        (["--key", "condition"], "give both"),
    ]
    for arguments, sentence in refusals:
        monkeypatch.setattr(sys, "argv", ["norman", *map(str, arguments), "--out", str(tmp_path / "none")])
        with pytest.raises(pv.InputError, match=re.escape(sentence)):
            command.main()
    done = run(*refusals[0][0], "--out", tmp_path / "none")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and refusals[0][1] in done.stderr
    assert not (tmp_path / "none").exists()


def test_documents_are_what_the_results_say() -> None:
    results = publish.Results(HERE / "results.csv")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert readme.count("<!-- norman: ") >= 3
    assert filled(readme, "norman", publish.tables(results)) == readme
    assert publish.page(results) == (HERE / "tables.md").read_text(encoding="utf-8")


def test_an_arm_run_alone_gives_the_committed_values(arithmetic: dict[tuple[str, str], float]) -> None:
    committed = pd.read_csv(HERE / "results.csv")
    mine = committed[(committed["arm"] == "arithmetic") & (committed["seed"] == 0)].set_index(["what", "metric"])["value"]
    assert set(mine.index) == set(arithmetic)
    np.testing.assert_allclose([arithmetic[name] for name in mine.index], mine.to_numpy(), atol=2e-5)


def test_the_smoke_arm_fits_and_orders_what_it_should() -> None:
    rows = {(what, metric): value for what, metric, value in arms.simulated(True, 0)}

    def rmse(method: str) -> float:
        return rows[f"{method} [doubles]", "rmse_cell_rel"]

    assert rmse(arms.MEASURED) < rmse(arms.MODEL) < rmse("no change") < rmse(arms.PERFECT)
    sampled, mean = (rows[f"{m} [doubles]", "energy_distance"] for m in (arms.MODEL_CELLS, arms.MODEL))
    assert sampled < 0.5 * mean
    assert rows[f"{arms.MODEL} [doubles]", "mse_ratio"] < 0.5
