"""`pvae-pyro export` on a real small run: the file holds what Python computes, refusals leave nothing behind."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import xarray as xr
from cli_support import PAIRS, contents, done, fit_options, refused, run

from pvae_pyro.inference import Fit
from pvae_pyro.runs import open_run

pytest_plugins = ("cli_fixtures",)


@pytest.fixture(scope="module")
def written(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of a run that has moved, and what the command said."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(fitted, folder / "moved")
    said = done("export", folder / "moved", "--draws", 6, "--seed", 3, "--genes", 20, "--out", folder / "run.nc").out
    return folder / "run.nc", said


def test_the_file_is_what_python_computes(written: tuple[Path, str], fitted: Path) -> None:
    path, said = written
    assert said == f"Wrote 6 draws of 6 trained and 5 held-out conditions, 20 genes, to {path}.\n"
    assert {one.name for one in path.parent.iterdir()} == {"run.nc", "moved"}
    truth = open_run(fitted).held_out()
    sizes = dict(zip(truth.conditions, truth.n_cells.tolist(), strict=True))
    expected = Fit.load(fitted / "fit").to_datatree(6, 3, genes=20, predictions=sizes)
    with xr.open_datatree(path, engine="h5netcdf") as found:
        assert set(found.children) == set(expected.children)
        for group in expected.children:
            xr.testing.assert_equal(found[group].dataset, expected[group].dataset)
        assert found["predictions"].coords["condition"].values.tolist() == list(PAIRS)
        assert found["predictions_constant_data"]["n_cells"].values.tolist() == truth.n_cells.tolist()
        assert "imulated" in found.attrs["data_note"] and "not MCMC" in found.attrs["note"]
        assert found.attrs["data"] == "data.h5ad" and found.attrs["seed"] == 3


def test_all_genes(fitted: Path, tmp_path: Path) -> None:
    assert "60 genes" in done("export", fitted, "--draws", 2, "--genes", "all", "--out", tmp_path / "a.nc").out


def test_a_run_that_held_nothing_out_has_no_predictions(screen_file: Path, config_file: Path, tmp_path: Path) -> None:
    options = fit_options(config_file)
    options[options.index("singles")] = "all"
    done("fit", screen_file, *options, "--out", tmp_path / "run")
    said = done("export", tmp_path / "run", "--draws", 2, "--out", tmp_path / "run.nc").out
    assert "11 trained and 0 held-out" in said
    with xr.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as found:
        assert "predictions" not in found.children and "posterior_predictive" in found.children


def test_refusals_touch_nothing(fitted: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.nc"
    there.write_bytes(b"somebody's")
    before = contents(tmp_path)
    new = tmp_path / "new.nc"
    assert "--overwrite" in refused("export", fitted, "--out", there)
    assert "does not exist" in refused("export", tmp_path / "no_run", "--out", new)
    assert "no run" in refused("export", tmp_path, "--out", new)
    assert "draws" in refused("export", fitted, "--draws", 0, "--out", new)
    assert "seed" in refused("export", fitted, "--seed", -1, "--out", new)
    for genes in ("0", "-3", "some", "1.5"):
        assert "--genes" in refused("export", fitted, "--genes", genes, "--out", new)
    assert "no folder" in refused("export", fitted, "--out", tmp_path / "nowhere" / "a.nc")
    assert "is a folder" in refused("export", fitted, "--out", tmp_path)
    assert contents(tmp_path) == before


def test_overwrite_replaces_the_file(fitted: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.nc"
    there.write_bytes(b"an old one")
    done("export", fitted, "--draws", 2, "--overwrite", "--out", there)
    with xr.open_datatree(there, engine="h5netcdf") as found:
        assert found["posterior"].sizes["draw"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["there.nc"]


def test_a_write_that_fails_leaves_the_old_file(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.nc"
    there.write_bytes(b"an old one")

    def full(self: xr.DataTree, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", full)
    outcome = run("export", fitted, "--draws", 2, "--overwrite", "--out", there)
    assert outcome.status == 1 and "No space left" in outcome.err and "Traceback" not in outcome.err
    assert contents(tmp_path) == {"there.nc": b"an old one"}
