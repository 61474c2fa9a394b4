"""Bad input: one sentence on standard error, status 2, and not a file more or less than before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from cli_support import PAIRS, contents, fit_options, refused

import pvae_pyro

pytest_plugins = ("cli_fixtures",)

Damage = Callable[[anndata.AnnData], None]


def fit_refused(data: object, config_file: Path, folder: Path, *options: object) -> str:
    """A fit that must be refused and leave the folder as it was."""
    before = contents(folder)
    sentence = refused("fit", data, *fit_options(config_file), "--out", folder / "run", *options)
    assert contents(folder) == before
    return sentence


def one_value(value: float) -> Damage:
    def damage(cells: anndata.AnnData) -> None:
        cells.X = cells.X.astype(np.float32)
        cells.X.data[7] = value

    return damage


def labels(change: Callable[[pd.Series], pd.Series]) -> Damage:
    def damage(cells: anndata.AnnData) -> None:
        cells.obs["condition"] = change(cells.obs["condition"].astype(str)).to_numpy()

    return damage


def keep(which: Callable[[pd.Series], pd.Series]) -> Damage:
    def damage(cells: anndata.AnnData) -> None:
        cells._inplace_subset_obs(which(cells.obs["condition"].astype(str)).to_numpy())

    return damage


def duplicate_gene(cells: anndata.AnnData) -> None:
    cells.var_names = ["GATA1", "GATA1", *cells.var_names[2:]]


def no_counts(cells: anndata.AnnData) -> None:
    cells.X = cells.X * 0


def missing_labels(cells: anndata.AnnData) -> None:
    column = cells.obs["condition"].astype(object)
    column.iloc[[3, 5]] = None
    cells.obs["condition"] = pd.Categorical(column)


DAMAGED: dict[str, tuple[Damage, list[str]]] = {
    "NaN": (one_value(float("nan")), ["1 NaN value"]),
    "infinite": (one_value(float("inf")), ["1 infinite value"]),
    "negative": (one_value(-2.0), ["1 negative value"]),
    "no controls": (keep(lambda label: label != "control"), ["no control cells", "'T0"]),
    "only controls": (keep(lambda label: label == "control"), ["every cell is a control"]),
    "no counts": (no_counts, ["single count"]),
    "duplicate genes": (duplicate_gene, ["'GATA1'"]),
    "missing labels": (missing_labels, ["2 of 617 cells", "'condition'"]),
    "several separators": (
        labels(lambda label: label.str.replace("T01+T02", "T01|T02")),
        ["--separator", "'|'", "'+'"],
    ),
    "half normalised": (
        lambda cells: cells.X.data.__setitem__(slice(-50, None), 0.37),
        ["no whole numbers"],
    ),
    "singles only of one combination": (
        keep(lambda label: label.isin(["control", "T01+T02"])),
        ["left to train on"],
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_screens_that_cannot_be_used(
    name: str, cells: anndata.AnnData, config_file: Path, tmp_path: Path
) -> None:
    damage, found = DAMAGED[name]
    damage(cells)
    cells.write_h5ad(tmp_path / "data.h5ad")
    sentence = fit_refused(tmp_path / "data.h5ad", config_file, tmp_path)
    for part in found:
        assert part in sentence


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def other_hdf5(path: Path, good: Path) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = np.ones(3)


BROKEN: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda path, good: None, "does not exist"),
    "empty": (lambda path, good: path.write_bytes(b""), "is empty"),
    "text": (lambda path, good: path.write_text("cell,gene\n1,2\n"), "not an h5ad"),
    "truncated": (truncated, "cut short"),
    "other HDF5": (other_hdf5, "'matrix'"),
    "folder": (lambda path, good: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_screens(name: str, screen_file: Path, config_file: Path, tmp_path: Path) -> None:
    make, found = BROKEN[name]
    make(tmp_path / "data.h5ad", screen_file)
    assert found in fit_refused(tmp_path / "data.h5ad", config_file, tmp_path)


FILES = {
    "empty.txt": "\n# nothing\n",
    "unknown.txt": "T01+T99\n",
    "unmeasured.txt": "T01+T06\n",
    "control.txt": "T01\nctrl\n",
    "genes.txt": "no such gene\n",
    "bad.toml": "[fit]\nepoch = 3\n",
    "binomial.toml": "[story]\nlikelihood = 'negative-binomial'\n",
    "columns.csv": "name,n\nT01,3\n",
    "values.csv": "condition,n_cells\nT01,0\n",
    "halves.csv": "condition,n_cells\nT01,2.5\n",
    "repeated.csv": "condition,n_cells\nT01+T02,2\nT02+T01,3\n",
    "partial.csv": "condition,n_cells\nT02,2\n",
    "empty.csv": "",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of a test, with the lists and configurations of FILES."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


FIT_OPTIONS: list[tuple[list[str], list[str]]] = [
    (["--perturbation-key", "guide"], ["'guide'", "'condition'", "'batch'"]),
    (["--batch-key", "lane"], ["'lane'", "'batch'"]),
    (["--layer", "raw"], ["'raw'", "no layers"]),
    (["--control-label", "AAVS1"], ["'AAVS1'", "'control'"]),
    (["--train", "FOLDER/missing.txt"], ["missing.txt", "cannot be read"]),
    (["--train", "FOLDER/empty.txt"], ["empty.txt", "is empty"]),
    (["--train", "FOLDER/unknown.txt"], ["'T99'", "'T01'"]),
    (["--train", "FOLDER/unmeasured.txt"], ["'T01+T06'", "no cells"]),
    (["--hold-out", "FOLDER/unknown.txt"], ["'T99'"]),
    (["--hold-out", "FOLDER/control.txt"], ["control", "take it off"]),
    (["--genes", "0"], ["0"]),
    (["--genes", "FOLDER/genes.txt"], ["'no such gene'"]),
    (["--genes", "most"], ["'most'"]),
    (["--config", "FOLDER/missing.toml"], ["missing.toml"]),
    (["--config", "FOLDER/bad.toml"], ["'epoch'", "'epochs'"]),
    (["--seed", "-1"], ["-1"]),
    (["--device", "gpu"], ["'gpu'", "auto, cpu or cuda"]),
    (["--resume"], ["--resume"]),
    (["--resume", "--overwrite"], ["only one"]),
    (["--out", "FOLDER/no/run"], ["no folder"]),
    (["--out", "FOLDER/empty.txt"], ["is a file"]),
    (["--out", "FOLDER"], ["not touched"]),
    (["--out", "FOLDER", "--overwrite"], ["not touched"]),
    (["--out", "FOLDER", "--resume"], ["not touched"]),
]


@pytest.mark.parametrize(("options", "found"), FIT_OPTIONS, ids=[" ".join(o) for o, _ in FIT_OPTIONS])
def test_options_of_fit(
    options: list[str], found: list[str], screen_file: Path, config_file: Path, files: Path
) -> None:
    given = [option.replace("FOLDER", str(files)) for option in options]
    sentence = fit_refused(screen_file, config_file, files, *given)
    for part in found:
        assert part in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(screen_file: Path, config_file: Path, tmp_path: Path) -> None:
    assert "CUDA" in fit_refused(screen_file, config_file, tmp_path, "--device", "cuda")


def test_counts_are_needed_by_a_likelihood_of_counts(
    cells: anndata.AnnData, config_file: Path, files: Path
) -> None:
    cells.X = np.log1p(cells.X.toarray())
    cells.write_h5ad(files / "data.h5ad")
    sentence = fit_refused(files / "data.h5ad", config_file, files, "--config", files / "binomial.toml")
    assert "normalised" in sentence


PREDICT_OPTIONS: list[tuple[list[str], list[str]]] = [
    (["--conditions", "T01+T99"], ["'T99'", "'T01'"]),
    (["--conditions", "T01+T02,T02+T01"], ["'T01+T02'", "twice"]),
    (["--conditions", "T01,,T02"], ["empty condition"]),
    (["--conditions", ""], ["empty condition"]),
    (["--conditions", "T01+T01"], ["'T01'", "twice"]),
    (["--conditions-file", "FOLDER/missing.txt"], ["missing.txt"]),
    (["--conditions-file", "FOLDER/empty.txt"], ["is empty"]),
    (["--conditions-file", "FOLDER/unknown.txt"], ["'T99'"]),
    ([], ["none of them"]),
    (["--conditions", "T01", "--all-pairs"], ["2 of them"]),
    (["--conditions", "T01", "--draws", "0"], ["draws is 0"]),
    (["--conditions", "T01", "--seed", "-3"], ["seed is -3"]),
    (["--conditions", "T01", "--n-cells", "0"], ["cells is 0"]),
    (["--conditions", "T01", "--n-cells", "5", "--n-cells-file", "FOLDER/values.csv"], ["one of them"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/missing.csv"], ["missing.csv"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/empty.csv"], ["empty.csv"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/columns.csv"], ["'condition'", "'name', 'n'"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/values.csv"], ["'0'", "'T01'"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/halves.csv"], ["'2.5'"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/repeated.csv"], ["twice"]),
    (["--conditions", "T01", "--n-cells-file", "FOLDER/partial.csv"], ["'T01'"]),
    (["--conditions", "T01", "--out", "FOLDER"], ["is a folder"]),
    (["--conditions", "T01", "--out", "FOLDER/no/p.h5ad"], ["no folder"]),
    (["--conditions", "T01", "--out", "FOLDER/empty.txt"], ["--overwrite"]),
    (["--conditions", "T01", "--draws-out", "FOLDER/pred.h5ad"], ["two outputs"]),
    (["--conditions", "T01", "--cells-out", "FOLDER/empty.txt"], ["--overwrite"]),
]


@pytest.mark.parametrize(
    ("options", "found"), PREDICT_OPTIONS, ids=[" ".join(o) or "none" for o, _ in PREDICT_OPTIONS]
)
def test_options_of_predict(options: list[str], found: list[str], fitted: Path, files: Path) -> None:
    before = contents(files)
    given = [option.replace("FOLDER", str(files)) for option in options]
    sentence = refused("predict", fitted, "--out", files / "pred.h5ad", *given)
    assert contents(files) == before
    for part in found:
        assert part in sentence


def make_foreign(folder: Path, fitted: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text('{"made_by": "somebody else"}', encoding="utf-8")


def make_without_fit(folder: Path, fitted: Path) -> None:
    shutil.copytree(fitted, folder)
    shutil.rmtree(folder / "fit")


def make_newer(folder: Path, fitted: Path) -> None:
    shutil.copytree(fitted, folder)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(facts | {"format": 99}), encoding="utf-8")


def make_damaged_state(folder: Path, fitted: Path) -> None:
    shutil.copytree(fitted, folder)
    state = folder / "fit/state.safetensors"
    state.write_bytes(state.read_bytes()[:100])


RUNS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda folder, fitted: None, "does not exist"),
    "file": (lambda folder, fitted: folder.write_text("x"), "no run folder"),
    "empty folder": (lambda folder, fitted: folder.mkdir(), "no run of pvae_pyro"),
    "somebody else's": (make_foreign, "no run of pvae_pyro"),
    "without a fit": (make_without_fit, "damaged"),
    "of a later version": (make_newer, "format 99"),
    "with half a state": (make_damaged_state, "state.safetensors"),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_run_folders_that_are_none(command: str, name: str, fitted: Path, tmp_path: Path) -> None:
    make, found = RUNS[name]
    make(tmp_path / "run", fitted)
    before = contents(tmp_path)
    options = ["--conditions", "T01"] if command == "predict" else []
    assert found in refused(command, tmp_path / "run", *options, "--out", tmp_path / "out")
    assert contents(tmp_path) == before


def add_unknown_target(cells: anndata.AnnData) -> None:
    cells.obs["condition"] = cells.obs["condition"].astype(str).replace("T01+T02", "T01+T77").to_numpy()


def normalise(cells: anndata.AnnData) -> None:
    cells.X = np.log1p(cells.X.toarray())


def drop_gene(cells: anndata.AnnData) -> None:
    cells._inplace_subset_var(cells.var_names[1:])


TESTS: dict[str, tuple[Damage, list[str]]] = {
    "unknown target": (add_unknown_target, ["'T77'"]),
    "other scale": (normalise, ["normalised", "counts"]),
    "missing gene": (drop_gene, ["1 of 60 genes"]),
    "only control": (keep(lambda label: label == "control"), ["no perturbed cells"]),
    "missing key": (
        lambda cells: cells.obs.rename(columns={"condition": "guide"}, inplace=True),
        ["'condition'"],
    ),
    "NaN": (one_value(float("nan")), ["NaN"]),
}


@pytest.mark.parametrize("name", TESTS)
def test_files_that_cannot_be_scored(name: str, fitted: Path, cells: anndata.AnnData, tmp_path: Path) -> None:
    damage, found = TESTS[name]
    damage(cells)
    cells.write_h5ad(tmp_path / "test.h5ad")
    before = contents(tmp_path)
    sentence = refused("evaluate", fitted, "--test", tmp_path / "test.h5ad", "--out", tmp_path / "report")
    assert contents(tmp_path) == before
    for part in found:
        assert part in sentence


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--preset", "zoo"], "'zoo'"),
        (["--seed", "-1"], "-1"),
        (["--out", "FOLDER/no/s.h5ad"], "no folder"),
        (["--out", "FOLDER"], "is a folder"),
        (["--out", "FOLDER/empty.txt"], "--overwrite"),
    ],
)
def test_options_of_simulate(options: list[str], found: str, files: Path) -> None:
    before = contents(files)
    given = [option.replace("FOLDER", str(files)) for option in options]
    assert found in refused("simulate", "--out", files / "s.h5ad", *given)
    assert contents(files) == before


def test_the_program_itself_ends_with_one_sentence_and_status_2(tmp_path: Path) -> None:
    words = ["predict", str(tmp_path / "nowhere"), "--all-pairs", "--out", str(tmp_path / "p.h5ad")]
    command = [sys.executable, "-m", "pvae_pyro.cli", *words]
    root = Path(pvae_pyro.__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: the run folder {tmp_path / 'nowhere'} does not exist")
    assert result.stderr.count("\n") == 1
    assert contents(tmp_path) == {}


def test_the_pairs_of_the_fixture_are_what_the_tests_assume(cells: anndata.AnnData) -> None:
    found = set(cells.obs["condition"].astype(str))
    assert found == {"control", *(f"T{number:02d}" for number in range(1, 7)), *PAIRS}
