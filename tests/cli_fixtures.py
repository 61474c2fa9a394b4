"""Fixtures of the tests of the command line: a small screen file and a run fitted to it."""

from __future__ import annotations

from pathlib import Path

import anndata
import pytest
from cli_support import done, fit_options

from pvae_pyro.simulate import simulate

CONFIG = "[story]\nbackground = 3\nhidden = 4\n\n[fit]\nepochs = 2\nbatch_size = 128\n"


@pytest.fixture(scope="session")
def screen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """617 simulated cells x 60 genes: control, T01 ... T06 and the pairs of PAIRS."""
    screen = simulate(
        "default",
        seed=1,
        targets=6,
        doubles=5,
        controls=200,
        cells_per_condition=40,
        genes=60,
        responsive=4,
        background=3,
    )
    return screen.write(tmp_path_factory.mktemp("screen") / "screen.h5ad")


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and two epochs."""
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def fitted(screen_file: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on controls and singles; its data has moved away since."""
    folder = tmp_path_factory.mktemp("fitted")
    data = folder / "data.h5ad"
    data.write_bytes(screen_file.read_bytes())
    done("fit", data, *fit_options(config_file), "--out", folder / "run")
    data.unlink()
    return folder / "run"


@pytest.fixture
def cells(screen_file: Path) -> anndata.AnnData:
    """The screen in memory, to be damaged by a test."""
    return anndata.read_h5ad(screen_file)
