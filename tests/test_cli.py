"""The commands end to end on a small screen: what they write, that it repeats, and that nothing is half done."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import typer
from cli_support import PAIRS, contents, done, fit_options, refused, run

import pvae_pyro.report
from pvae_pyro import demo
from pvae_pyro.inference import Fit, NotFinite
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.screen import ConditionSummary, Screen

pytest_plugins = ("cli_fixtures",)

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def predict(fitted: Path, out: Path, *options: object, draws: int = 12) -> anndata.AnnData:
    done("predict", fitted, *options, "--draws", draws, "--out", out)
    return anndata.read_h5ad(out)


def test_help_lists_the_commands_and_needs_no_torch() -> None:
    words = [line.split()[0] for line in run("--help").out.split("Commands:")[1].splitlines() if line.strip()]
    assert words == ["fit", "predict", "evaluate", "compare", "export", "simulate"]
    code = (
        "import sys; from typer.testing import CliRunner; from pvae_pyro.cli import app\n"
        "for command in ('fit', 'predict', 'evaluate', 'compare', 'export', 'simulate'):\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
        "heavy = {'torch', 'pyro', 'anndata', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_option_ends_with_status_2() -> None:
    assert run("fit", "--no-such-option").status == 2


def test_fit_says_what_it_found_and_what_it_holds_out(
    screen_file: Path, config_file: Path, tmp_path: Path
) -> None:
    said = done("fit", screen_file, *fit_options(config_file), "--out", tmp_path / "run").out
    assert "control is written 'control', combinations are joined by '+'" in said
    assert "raw counts" in said
    assert "Genes: 60" in said
    assert "Held out: 191 cells of 5 conditions" in said
    assert all(pair in said for pair in PAIRS)
    assert said.rstrip().endswith(f"The fit is in {tmp_path / 'run'}.")
    assert contents(tmp_path).keys() >= {"run", "run/run.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_run_holds_all_that_later_commands_need(fitted: Path, screen_file: Path) -> None:
    facts = json.loads((fitted / "run.json").read_text(encoding="utf-8"))
    assert facts["made_by"] == "pvae_pyro run"
    assert facts["settings"]["seed"] == 0
    assert facts["settings"]["config"]["fit"]["epochs"] == 2
    assert facts["versions"]["torch"]
    assert str(screen_file.parent) not in (fitted / "run.json").read_text(encoding="utf-8").replace(
        facts["command"], ""
    )
    assert (fitted / "held_out.txt").read_text(encoding="utf-8").split() == list(PAIRS)
    with np.load(fitted / "held_out.npz", allow_pickle=False) as arrays:
        held_out = ConditionSummary.from_arrays(arrays)
    whole = Screen.from_anndata(screen_file, "condition").summary()
    np.testing.assert_array_equal(held_out.mean, whole.restrict(PAIRS).mean)
    fit = Fit.load(fitted / "fit")
    assert fit.conditions == ("control", "T01", "T02", "T03", "T04", "T05", "T06")
    assert not (fitted / "checkpoint").exists()


def test_config_toml_of_a_run_fits_the_same_again(fitted: Path, screen_file: Path, tmp_path: Path) -> None:
    done("fit", screen_file, *fit_options(fitted / "config.toml"), "--out", tmp_path / "run")
    assert (tmp_path / "run/fit/state.safetensors").read_bytes() == (
        fitted / "fit/state.safetensors"
    ).read_bytes()


def test_predictions_are_what_the_contract_says(fitted: Path, tmp_path: Path) -> None:
    asked = "T06+T03,T01, T02_T05 ,control,T01|T02|T04"
    table = predict(
        fitted, tmp_path / "p.h5ad", "--conditions", asked, "--draws-out", tmp_path / "d.npz", draws=15
    )
    names = ["T03+T06", "T01", "T02+T05", "control", "T01+T02+T04"]
    assert table.obs_names.tolist() == names
    assert table.var_names.tolist() == Fit.load(fitted / "fit").genes.tolist()
    assert table.X.dtype == np.float32
    assert set(table.layers) == {"sd", *QUANTILES, "latent_mean", "latent_sd"}
    assert all(layer.dtype == np.float32 for layer in table.layers.values())
    assert table.obs["n_targets"].tolist() == [2, 1, 2, 0, 3]
    assert table.obs["seen_targets"].tolist() == [2, 1, 2, 0, 3]
    assert table.uns["scale"] == "mean over cells of log1p(counts per 10,000)"
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        draws = file["draws"]
        assert file["conditions"].tolist() == names
        assert file["genes"].tolist() == table.var_names.tolist()
    assert draws.shape == (15, 5, 60)
    assert draws.dtype == np.float32
    np.testing.assert_allclose(table.X, draws.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(table.layers["sd"], draws.std(axis=0, ddof=1), atol=1e-5)
    for name, level in QUANTILES.items():
        np.testing.assert_allclose(table.layers[name], np.quantile(draws, level, axis=0), atol=1e-5)
    # a mean over cells does not move the expectation, it only adds noise
    assert (table.layers["latent_sd"] < table.layers["sd"]).mean() > 0.9
    assert np.abs(table.layers["latent_mean"] - table.X).max() < 1.0


def test_the_seed_and_nothing_else_decides_the_draws(fitted: Path, tmp_path: Path) -> None:
    one = predict(fitted, tmp_path / "1.h5ad", "--conditions", "T01+T02,T03")
    same = predict(fitted, tmp_path / "2.h5ad", "--conditions", "T02+T01,T03")
    turned = predict(fitted, tmp_path / "4.h5ad", "--conditions", "T03,T01+T02,T05")
    other = predict(fitted, tmp_path / "3.h5ad", "--conditions", "T01+T02,T03", "--seed", 1)
    np.testing.assert_array_equal(one.X, same.X)
    np.testing.assert_array_equal(one.layers["q95"], same.layers["q95"])
    # beside other conditions, sums over genes may be rounded in another order
    np.testing.assert_allclose(one.layers["q95"], turned[one.obs_names].layers["q95"], atol=1e-5)
    assert np.abs(one.X - other.X).max() > 1e-3


def test_numbers_of_cells_come_from_the_option_the_file_or_training(fitted: Path, tmp_path: Path) -> None:
    training = Fit.load(fitted / "fit").training
    own = dict(zip(training.conditions, training.n_cells.tolist(), strict=True))
    asked = ["--conditions", "T01,T01+T02"]
    default = predict(fitted, tmp_path / "1.h5ad", *asked)
    median = int(np.median([n for name, n in own.items() if name != "control"]))
    assert default.obs["n_cells"].tolist() == [own["T01"], median]
    few = predict(fitted, tmp_path / "2.h5ad", *asked, "--n-cells", 2)
    assert few.obs["n_cells"].tolist() == [2, 2]
    assert np.median(few.layers["sd"]) > 2 * np.median(default.layers["sd"])
    (tmp_path / "n.csv").write_text("condition,n_cells\nT02+T01,7\nT01,300\nT05,1\n", encoding="utf-8")
    listed = predict(fitted, tmp_path / "3.h5ad", *asked, "--n-cells-file", tmp_path / "n.csv")
    assert listed.obs["n_cells"].tolist() == [300, 7]


def test_all_pairs_are_those_of_the_trained_targets(fitted: Path, tmp_path: Path) -> None:
    table = predict(fitted, tmp_path / "p.h5ad", "--all-pairs", draws=2)
    targets = [f"T{number:02d}" for number in range(1, 7)]
    assert table.obs_names.tolist() == [f"{a}+{b}" for a, b in combinations(targets, 2)]


def test_a_file_may_write_pairs_with_commas(fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("# comment\nT02,T01\n\nT05\n", encoding="utf-8")
    table = predict(fitted, tmp_path / "p.h5ad", "--conditions-file", tmp_path / "asked.txt", draws=2)
    assert table.obs_names.tolist() == ["T01+T02", "T05"]


def test_new_cells_and_latent_effects_are_written_on_request(fitted: Path, tmp_path: Path) -> None:
    extra = ["--cells-out", tmp_path / "c.h5ad", "--effects-out", tmp_path / "e.csv", "--n-cells", 5]
    predict(fitted, tmp_path / "p.h5ad", "--conditions", "T01+T02,T03", *extra)
    made = anndata.read_h5ad(tmp_path / "c.h5ad")
    assert made.obs["condition"].tolist() == ["T01+T02"] * 5 + ["T03"] * 5
    assert made.shape == (10, 60)
    assert made.obs_names.is_unique
    assert np.isfinite(made.X).all()
    assert np.unique(made.X, axis=0).shape[0] == 10
    effects = pd.read_csv(tmp_path / "e.csv")
    assert effects.columns.tolist() == ["target", "latent", "mean", "sd", "inclusion"]
    assert sorted(effects["target"].unique()) == [f"T{number:02d}" for number in range(1, 7)]
    assert effects["inclusion"].between(0, 1).all()


def test_singles_are_trained_bit_for_bit_the_same_with_and_without_doubles_in_the_file(
    fitted: Path, cells: anndata.AnnData, config_file: Path, tmp_path: Path
) -> None:
    cells[~cells.obs["condition"].isin(PAIRS)].copy().write_h5ad(tmp_path / "singles.h5ad")
    done("fit", tmp_path / "singles.h5ad", *fit_options(config_file), "--out", tmp_path / "run")
    for name, source in (("with", fitted), ("without", tmp_path / "run")):
        options = ["--conditions", "T01+T02,T04,control", "--draws-out", tmp_path / f"{name}.npz"]
        predict(source, tmp_path / f"{name}.h5ad", *options)
    assert (tmp_path / "with.npz").read_bytes() == (tmp_path / "without.npz").read_bytes()
    assert not (tmp_path / "run/held_out.npz").exists()
    sentence = refused("evaluate", tmp_path / "run", "--out", tmp_path / "report")
    assert "--test" in sentence


def test_a_target_that_was_never_trained_is_predicted_warned_about_and_counted(
    screen_file: Path, config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "held.txt").write_text("T06\nT03,T06\n", encoding="utf-8")
    options = [*fit_options(config_file), "--hold-out", tmp_path / "held.txt"]
    done("fit", screen_file, *options, "--out", tmp_path / "run")
    fit = Fit.load(tmp_path / "run/fit")
    assert "T06" not in fit.targets
    asked = ["--conditions", "T05+T06,T06,T01+T02", "--draws", 12, "--out", tmp_path / "p.h5ad"]
    outcome = run("predict", tmp_path / "run", *asked)
    assert outcome.status == 0
    assert "T06" in outcome.err
    assert "never trained" in outcome.err
    assert "T05" not in outcome.err
    table = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert table.obs["seen_targets"].tolist() == [1, 0, 2]
    assert table.obs["n_targets"].tolist() == [2, 1, 2]
    assert np.isfinite(table.X).all()


def test_evaluate_writes_the_report_of_the_held_out_pairs(fitted: Path, tmp_path: Path) -> None:
    outcome = run("evaluate", fitted, "--out", tmp_path / "report")
    assert outcome.status == 0, outcome.err
    assert outcome.out.rstrip() == f"The report is in {tmp_path / 'report/report.md'}."
    rows = pd.read_csv(tmp_path / "report/metrics.csv")
    assert {"condition", "method", "metric"} <= set(rows.columns)
    assert set(rows["condition"]) == set(PAIRS)
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert "imulated" in text.splitlines()[0], "numbers from simulated cells are called so"
    for image in (tmp_path / "report").glob("*.png"):
        assert image.name in text
    assert {path.name for path in tmp_path.iterdir()} == {"report"}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[ConditionSummary]:
    """Makes reports cheap and keeps what they were to be about."""
    seen: list[ConditionSummary] = []

    def stand_in(fit: Fit, truth: ConditionSummary, out_dir: Path, **settings: Any) -> Path:
        seen.append(truth)
        out_dir.mkdir(exist_ok=True)
        (out_dir / "report.md").write_text("report\n", encoding="utf-8")
        return out_dir / "report.md"

    monkeypatch.setattr(pvae_pyro.report, "evaluate_run", stand_in)
    return seen


def test_a_test_file_is_scored_on_its_own_cells_and_labels(
    fitted: Path, cells: anndata.AnnData, tmp_path: Path, scored: list[ConditionSummary]
) -> None:
    # another convention, another order of genes, no control, one gene more; library sizes include that gene
    part = cells[cells.obs["condition"].isin(["T01", *PAIRS[:2]])]
    relabelled = part.obs["condition"].astype(str).str.replace("T02+T03", "T03,T02").str.replace("+", ",")
    test = anndata.AnnData(
        X=np.hstack([part.X.toarray()[:, ::-1], np.ones((part.n_obs, 1), np.float32)]),
        obs=pd.DataFrame({"condition": relabelled}),
        var=pd.DataFrame(index=[*part.var_names[::-1], "extra"]),
    )
    test.write_h5ad(tmp_path / "test.h5ad")
    done("evaluate", fitted, "--test", tmp_path / "test.h5ad", "--out", tmp_path / "report")
    (truth,) = scored
    assert truth.conditions == ("T01", "T01+T02", "T02+T03")
    assert truth.genes.tolist() == part.var_names.tolist()
    own = part.X.toarray()[(part.obs["condition"] == "T01").to_numpy()].astype(float)
    expected = np.log1p(own / (own.sum(axis=1, keepdims=True) + 1) * 1e4).mean(axis=0)
    np.testing.assert_allclose(truth.mean[0], expected, rtol=1e-5)


def test_cells_are_scored_when_asked_and_there(
    fitted: Path, cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Screen | None] = []

    def stand_in(fit: Fit, truth: ConditionSummary, out_dir: Path, **settings: Any) -> Path:
        given.append(settings["cells"])
        out_dir.mkdir(exist_ok=True)
        (out_dir / "report.md").write_text("report\n", encoding="utf-8")
        return out_dir / "report.md"

    monkeypatch.setattr(pvae_pyro.report, "evaluate_run", stand_in)
    assert "--test" in refused("evaluate", fitted, "--cells", "--out", tmp_path / "report")
    part = cells[cells.obs["condition"].isin(PAIRS[:2])].copy()
    part.write_h5ad(tmp_path / "test.h5ad")
    for flags in ((), ("--cells",)):
        done("evaluate", fitted, "--test", tmp_path / "test.h5ad", *flags, "--out", tmp_path / f"report{len(flags)}")
    assert given[0] is None and given[1] is not None
    assert given[1].n_cells == part.n_obs and set(given[1].conditions) == set(PAIRS[:2])


def test_reports_are_replaced_only_when_asked_and_only_if_they_are_reports(
    fitted: Path, tmp_path: Path, scored: list[ConditionSummary]
) -> None:
    out = tmp_path / "report"
    done("evaluate", fitted, "--out", out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert "--overwrite" in refused("evaluate", fitted, "--out", out)
    done("evaluate", fitted, "--out", out, "--overwrite")
    assert not (out / "notes.txt").exists()
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    done("evaluate", fitted, "--out", foreign)  # an empty folder is nobody's
    (foreign / "evaluation.json").unlink()
    before = contents(tmp_path)
    assert "not touched" in refused("evaluate", fitted, "--out", foreign, "--overwrite")
    assert contents(tmp_path) == before


def test_predictions_are_replaced_only_when_asked(fitted: Path, tmp_path: Path) -> None:
    predict(fitted, tmp_path / "p.h5ad", "--conditions", "T01", draws=2)
    before = contents(tmp_path)
    refused("predict", fitted, "--conditions", "T02", "--out", tmp_path / "p.h5ad")
    assert contents(tmp_path) == before
    assert predict(
        fitted, tmp_path / "p.h5ad", "--conditions", "T02", "--overwrite", draws=2
    ).obs_names.tolist() == ["T02"]


def test_when_one_output_fails_none_is_written(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    options = ["--conditions", "T01", "--draws", 2, "--out", tmp_path / "p.h5ad"]
    outcome = run("predict", fitted, *options, "--effects-out", tmp_path / "e.csv")
    assert outcome.status == 1
    assert outcome.err == "Error: the system refused: No space left on device.\n"
    assert contents(tmp_path) == {}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epochs: int, problem: BaseException) -> None:
    """The next fits end by `problem` when so many epochs are done."""
    step = Trainer.step

    def limited(self: Trainer, *arguments: Any) -> Any:
        if self.epoch > epochs:
            raise problem
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", limited)


def test_an_interrupted_fit_goes_on_bit_for_bit(
    fitted: Path, screen_file: Path, config_file: Path, tmp_path: Path
) -> None:
    command = ["fit", screen_file, *fit_options(config_file), "--out", tmp_path / "run"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 1, KeyboardInterrupt())
        sentence = refused(*command, status=130)
    assert "--resume" in sentence
    assert not (tmp_path / "run").exists()
    before = contents(tmp_path)
    assert "unfinished" in refused(
        "predict", tmp_path / "run", "--conditions", "T01", "--out", tmp_path / "p.h5ad"
    )
    assert "--resume" in refused(*command)
    assert "seed" in refused(*command, "--resume", "--seed", 1)
    assert "only one" in refused(*command, "--resume", "--overwrite")
    assert contents(tmp_path) == before
    done(*command, "--resume")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    for name in ("fit/state.safetensors", "fit/training.npz", "held_out.npz", "config.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (fitted / name).read_bytes()
    before = contents(tmp_path)
    assert "nothing to resume" in done(*command, "--resume").out
    assert contents(tmp_path) == before


def test_a_fit_interrupted_before_its_first_epoch_leaves_nothing(
    screen_file: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 0, KeyboardInterrupt())
    refused("fit", screen_file, *fit_options(config_file), "--out", tmp_path / "run", status=130)
    assert contents(tmp_path) == {}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    screen_file: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 1, NotFinite("The loss became nan in epoch 2; lower learning_rate."))
    command = ["fit", screen_file, *fit_options(config_file), "--out", tmp_path / "run"]
    assert "loss became nan" in refused(*command, status=1)
    assert not (tmp_path / "run").exists()
    assert any((tmp_path / "run.partial/checkpoint").iterdir())


def test_overwrite_replaces_a_run_only_when_the_new_one_is_whole(
    fitted: Path, screen_file: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", screen_file, *fit_options(config_file), "--out", tmp_path / "run"]
    done(*command)
    before = contents(tmp_path)
    assert "--overwrite" in refused(*command)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0, KeyboardInterrupt())
        refused(*command, "--overwrite", "--seed", 1, status=130)
    assert contents(tmp_path) == before
    done(*command, "--overwrite", "--seed", 1)
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["settings"]["seed"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_simulate_repeats_with_its_seed_and_knows_its_presets(tmp_path: Path) -> None:
    for name, options in (("a", []), ("b", []), ("c", ["--seed", 1]), ("d", ["--preset", "linear-gaussian"])):
        done("simulate", *options, "--out", tmp_path / f"{name}.h5ad")
    a, b, c, d = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in "abcd")
    assert (a.X != b.X).nnz == 0
    assert a.shape != c.shape or (a.X != c.X).nnz > 0
    assert d.n_vars == 200
    assert "--overwrite" in refused("simulate", "--out", tmp_path / "a.h5ad")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the demo would run."""
    seen: list[list[str]] = []
    monkeypatch.setattr(demo, "_run", lambda *words: seen.append([str(word) for word in words]))
    return seen


def test_the_demo_of_a_file_holds_out_its_pairs(
    screen_file: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    demo.main(screen_file, "condition", tmp_path / "demo")
    fit, predicted, evaluated = commands
    assert fit[:2] == ["fit", str(screen_file)]
    assert fit[fit.index("--train") + 1] == "singles"
    assert predicted[predicted.index("--conditions-file") + 1] == str(tmp_path / "demo/run/held_out.txt")
    assert evaluated[:2] == ["evaluate", str(tmp_path / "demo/run")]
    assert "--test" not in evaluated


def test_the_demo_of_a_file_without_pairs_holds_out_cells_of_every_condition(
    cells: anndata.AnnData, tmp_path: Path, commands: list[list[str]]
) -> None:
    singles = cells[~cells.obs["condition"].isin(PAIRS)].copy()
    singles.write_h5ad(tmp_path / "singles.h5ad")
    demo.main(tmp_path / "singles.h5ad", "condition", tmp_path / "demo")
    fit, predicted, evaluated = commands
    assert "--all-pairs" in predicted
    train, test = anndata.read_h5ad(fit[1]), anndata.read_h5ad(evaluated[evaluated.index("--test") + 1])
    assert sorted([*train.obs_names, *test.obs_names]) == sorted(singles.obs_names)
    before = singles.obs["condition"].value_counts()
    share = test.obs["condition"].value_counts() / before
    assert share.between(0.12, 0.2).all(), "a fifth of each condition, rounded down"
    assert set(train.obs["condition"]) == set(before.index)


@pytest.mark.parametrize("given", [{"data": Path("x.h5ad")}, {"key": "condition"}])
def test_the_demo_needs_a_file_and_its_column(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as ending:
        demo.main(**given, out=tmp_path / "demo")
    assert ending.value.exit_code == 2
    assert contents(tmp_path) == {}
