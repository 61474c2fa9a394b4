"""`pvae-pyro compare` on real small runs: what it writes and says, what it refuses, and that nothing is half done."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from cli_support import PAIRS, contents, done, fit_options, refused

from pvae_pyro.cli_compare import run_names
from pvae_pyro.evaluation.compare import compare
from pvae_pyro.evaluation.differences import COMPARED
from pvae_pyro.inference import Fit
from pvae_pyro.runs import open_run

pytest_plugins = ("cli_fixtures",)

WRITTEN = {"comparison.md", "comparison.csv", "metrics.csv", "comparison.png", "comparison.json"}


@pytest.fixture(scope="module")
def informed(screen_file: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same name that was trained on two of the pairs, too."""
    folder = tmp_path_factory.mktemp("informed")
    (folder / "held.txt").write_text("\n".join(PAIRS[2:]), encoding="utf-8")
    options = fit_options(config_file)
    options[options.index("singles")] = "all"
    done("fit", screen_file, *options, "--hold-out", folder / "held.txt", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def written(fitted: Path, informed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a comparison of the two, and what the command said."""
    out = tmp_path_factory.mktemp("compared") / "comparison"
    said = done("compare", fitted, informed, "--draws", 40, "--seed", 2, "--out", out).out
    return out, said


def test_the_conditions_are_those_that_no_run_was_trained_on(written: tuple[Path, str]) -> None:
    out, said = written
    assert {path.name for path in out.iterdir()} == WRITTEN and {
        path.name for path in out.parent.iterdir()
    } == {out.name}
    assert "Held out by all 2 runs: 3 conditions.\n" in said
    assert said.rstrip().endswith(f"The comparison is in {out / 'comparison.md'}.")
    assert set(pd.read_csv(out / "metrics.csv")["condition"]) == set(PAIRS[2:])


def test_what_is_written_is_what_python_computes(
    written: tuple[Path, str], fitted: Path, informed: Path
) -> None:
    out, said = written
    names = [f"{run.parent.name}/run" for run in (fitted, informed)]
    fits = dict(zip(names, [Fit.load(run / "fit") for run in (fitted, informed)], strict=True))
    truth = open_run(fitted).held_out().restrict(PAIRS[2:])
    expected = compare(fits, truth, draws=40, seed=2)
    table = pd.read_csv(out / "comparison.csv")
    pd.testing.assert_frame_equal(table, expected.table, check_exact=False, rtol=1e-6, atol=1e-9)
    assert set(table["metric"]) == set(COMPARED) and set(table["reference"]) == {names[0]}
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "imulated" in text.splitlines()[0], "numbers from simulated cells are called so"
    for sentence in (*expected.sentences, *expected.warnings):
        assert sentence in text and sentence in said
    assert "were trained on different conditions (9 and 7, 7 of them shared)" in expected.warnings[0]
    assert "With 3 conditions only a large difference could show." in text
    assert "comparison.png" in text and f"the reference is {names[0]}" in text


def test_a_run_and_itself_show_no_difference_beyond_noise(fitted: Path, tmp_path: Path) -> None:
    said = done("compare", fitted, fitted, fitted, "--draws", 20, "--out", tmp_path / "c").out
    assert "there is no difference beyond noise between run (2) and run" in said
    assert "there is no difference beyond noise between run (3) and run" in said
    table = pd.read_csv(tmp_path / "c/comparison.csv")
    assert (table[["difference", "standard_error"]] == 0).all(axis=None)
    assert set(table["conditions"]) == {5}


def test_a_test_file_is_read_as_the_first_run_was(
    fitted: Path, informed: Path, cells: anndata.AnnData, tmp_path: Path
) -> None:
    part = cells[cells.obs["condition"].isin(["control", *PAIRS[3:]])].copy()
    part.obs["condition"] = part.obs["condition"].astype(str).str.replace("+", ",")
    part[:, ::-1].copy().write_h5ad(tmp_path / "test.h5ad")
    outcome = done(
        "compare", informed, fitted, "--test", tmp_path / "test.h5ad", "--draws", 20, "--out", tmp_path / "c"
    )
    assert "Held out by all" not in outcome.out
    rows = pd.read_csv(tmp_path / "c/metrics.csv")
    assert set(rows["condition"]) == set(PAIRS[3:])
    assert "of test.h5ad" in (tmp_path / "c/comparison.md").read_text(encoding="utf-8")
    trained = cells[cells.obs["condition"].isin(["T01", *PAIRS[3:]])].copy()
    trained.write_h5ad(tmp_path / "trained.h5ad")
    before = contents(tmp_path)
    sentence = refused(
        "compare", informed, fitted, "--test", tmp_path / "trained.h5ad", "--out", tmp_path / "d"
    )
    assert "was trained on the condition 'T01'" in sentence
    assert contents(tmp_path) == before


def test_a_comparison_is_replaced_only_when_asked_and_only_if_it_is_one(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    command = ["compare", fitted, fitted, "--draws", 20, "--out", out]
    done(*command)
    before = contents(tmp_path)
    assert "--overwrite" in refused(*command)
    assert contents(tmp_path) == before

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pvae_pyro.report.plots.save", broken)
        refused(*command, "--overwrite", status=1)
    assert contents(tmp_path) == before, "a comparison that fails leaves the old one"
    done(*command, "--overwrite", "--seed", 1)
    assert contents(tmp_path) != before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine", encoding="utf-8")
    assert "not touched" in refused(*command[:-1], tmp_path / "thesis", "--overwrite")


def test_what_cannot_be_compared_is_refused_in_one_sentence(
    fitted: Path, informed: Path, screen_file: Path, config_file: Path, tmp_path: Path
) -> None:
    options = fit_options(config_file)
    done("fit", screen_file, *options, "--genes", 30, "--out", tmp_path / "fewer")
    options[options.index("singles")] = "all"
    done("fit", screen_file, *options, "--out", tmp_path / "all")
    before = contents(tmp_path)
    out = ["--out", tmp_path / "c"]
    assert "two runs or more" in refused("compare", fitted, *out)
    assert "does not exist" in refused("compare", fitted, tmp_path / "nowhere", *out)
    assert "19 draws" in refused("compare", fitted, informed, "--draws", 19, *out)
    assert "the seed is -1" in refused("compare", fitted, informed, "--seed", -1, *out)
    assert "--test" in refused("compare", fitted, tmp_path / "all", *out)
    assert "different genes (60 and 30, 30 of them shared)" in refused(
        "compare", fitted, tmp_path / "fewer", *out
    )
    assert contents(tmp_path) == before


def test_runs_of_other_cells_or_without_a_common_condition_are_refused(
    fitted: Path, screen_file: Path, config_file: Path, tmp_path: Path
) -> None:
    cells = anndata.read_h5ad(screen_file)
    few = cells[np.r_[0 : cells.n_obs : 1] % 2 == 0].copy()
    few.write_h5ad(tmp_path / "half.h5ad")
    done("fit", tmp_path / "half.h5ad", *fit_options(config_file), "--out", tmp_path / "half")
    sentence = refused("compare", fitted, tmp_path / "half", "--out", tmp_path / "c")
    assert f"hold different cells of '{PAIRS[0]}'" in sentence and "--test" in sentence
    (tmp_path / "held.txt").write_text("T04\n", encoding="utf-8")
    options = fit_options(config_file)
    options[options.index("singles")] = "all"
    done("fit", screen_file, *options, "--hold-out", tmp_path / "held.txt", "--out", tmp_path / "other")
    sentence = refused("compare", fitted, tmp_path / "other", "--out", tmp_path / "c")
    assert "no condition was held out by all of the 2 runs (they held out 5, 1)" in sentence


def test_runs_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("x/run", "y/run", "z"))
    assert run_names([a, c]) == ["run", "z"]
    assert run_names([a, b, c]) == ["x/run", "y/run", "z"]
    assert run_names([a, b, a, a]) == ["x/run", "y/run", "x/run (2)", "x/run (3)"]
    assert run_names([a / "..", b]) == ["x", "run"]
