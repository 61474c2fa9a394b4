"""An ensemble on the command line: one run like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from cli_support import PAIRS, contents, done, fit_options, refused

from pvae_pyro.guides import Ensemble, LowRank
from pvae_pyro.inference import Fit
from pvae_pyro.inference.svi import Trainer
from pvae_pyro.report.scoring import MODEL, WARM_START, score
from pvae_pyro.runs import open_run

pytest_plugins = ("cli_fixtures",)

GUIDE = '[guide]\nname = "ensemble"\nn = 2\nresample = true\nmember = { name = "low-rank", rank = 2 }\n'


@pytest.fixture(scope="module")
def config(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "ensemble.toml"
    path.write_text(f"{config_file.read_text(encoding='utf-8')}\n{GUIDE}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def several(screen_file: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two members; its data has moved away since."""
    folder = tmp_path_factory.mktemp("several")
    data = folder / "data.h5ad"
    data.write_bytes(screen_file.read_bytes())
    done("fit", data, *fit_options(config), "--out", folder / "run")
    data.unlink()
    return folder / "run"


def test_a_run_of_an_ensemble_predicts_and_is_scored(several: Path, tmp_path: Path) -> None:
    fit = Fit.load(several / "fit")
    assert fit.guide == Ensemble(n=2, member=LowRank(rank=2), resample=True)
    assert [one.guide for one in fit.members] == [LowRank(rank=2)] * 2
    facts = json.loads((several / "run.json").read_text(encoding="utf-8"))
    assert facts["settings"]["config"]["guide"]["member"] == {"name": "low-rank", "initial_scale": 0.1, "rank": 2}
    extra = ["--effects-out", tmp_path / "e.csv", "--draws-out", tmp_path / "d.npz"]
    done("predict", several, "--conditions", "T03+T01,T05", "--draws", 7, *extra, "--out", tmp_path / "p.h5ad")
    with np.load(tmp_path / "d.npz") as file:
        np.testing.assert_array_equal(file["draws"], fit.predict(["T01+T03", "T05"], draws=7).draws())
        np.testing.assert_allclose(anndata.read_h5ad(tmp_path / "p.h5ad").X, file["draws"].mean(0), atol=1e-5)
    effects = pd.read_csv(tmp_path / "e.csv")
    assert effects.columns.tolist() == ["member", "target", "latent", "mean", "sd", "inclusion"]
    assert sorted(effects["member"].unique()) == [0, 1]
    # what `evaluate` makes its report of
    scored = score(fit, open_run(several).held_out(), 40, 0)
    assert set(scored.scores.rows["condition"]) == set(PAIRS)
    assert np.isfinite(scored.values(MODEL, "crps")).all() and np.isfinite(scored.values(WARM_START, "crps")).all()


def test_an_interrupted_ensemble_is_resumed_in_its_second_member(
    several: Path, screen_file: Path, config: Path, config_file: Path, tmp_path: Path
) -> None:
    command: list[Any] = ["fit", screen_file, *fit_options(config), "--out", tmp_path / "run"]
    step, epochs = Trainer.step, 0

    def limited(self: Trainer, rows: np.ndarray, progress: float) -> Any:
        nonlocal epochs
        epochs += progress in (0, 0.5)  # the first step of each of two epochs
        if epochs == 4:
            raise KeyboardInterrupt
        return step(self, rows, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", limited)
        assert "--resume" in refused(*command, status=130)
    kept = sorted(path.name for path in (tmp_path / "run.partial/checkpoint").iterdir())
    assert kept == ["member-0", "member-1"]
    other = ["fit", screen_file, *fit_options(config_file), "--out", tmp_path / "run", "--resume"]
    assert "config" in refused(*other)
    done(*command, "--resume")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    found, expected = contents(tmp_path / "run"), contents(several)
    assert found.keys() == expected.keys()
    for i in range(2):
        for name in ("state", "start"):
            place = f"fit/member-{i}/{name}.safetensors"
            assert found[place] == expected[place]
