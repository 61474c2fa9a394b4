"""The loader of Norman et al.: every public layout is one screen; nothing is fetched unasked or unchecked."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pooch
import pytest
import requests

from pvae_pyro import datasets
from pvae_pyro.errors import InputError

# "C3" and "D_" stand in pairs only; the labels of one screen, as different files write them
CONDITIONS = [(), (), ("A1",), ("B2",), ("A1", "B2"), ("A1", "C3"), ("B2", "C3")]
LAYOUTS: dict[str, tuple[str, Callable[[tuple[str, ...]], str]]] = {
    "cpa": ("guide_ids", ",".join),
    "scperturb": ("perturbation", lambda t: "_".join(t) or "control"),
    "gears": ("condition", lambda t: "+".join(t if len(t) == 2 else (*t, "ctrl")) if t else "ctrl"),
    "plain": ("condition", lambda t: "+".join(reversed(t)) or "control"),
    "padded": ("perturbation", lambda t: "_".join((*t, "ctrl") if len(t) == 1 else t) or "ctrl"),
}


def write(folder: Path, layout: str) -> Path:
    key, label = LAYOUTS[layout]
    labels = [label(targets) for targets in CONDITIONS for _ in range(4)]
    counts = np.random.default_rng(0).poisson(3.0, (len(labels), 6)).astype(np.float32)
    obs = pd.DataFrame({key: labels, "gemgroup": np.arange(len(labels)) % 2}, index=[f"c{i}" for i in range(len(labels))])
    path = folder / f"{layout}.h5ad"
    anndata.AnnData(counts, obs, pd.DataFrame(index=[f"g{i}" for i in range(6)])).write_h5ad(path)
    return path


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_is_the_same_screen(tmp_path: Path, layout: str) -> None:
    screen = datasets.norman2019(write(tmp_path, layout))
    assert screen.conditions == ("control", "A1", "B2", "A1+B2", "A1+C3", "B2+C3")
    assert screen.targets == ("A1", "B2", "C3")
    assert screen.batches == ("0", "1") and screen.scale == "counts"
    reference = datasets.norman2019(write(tmp_path, "cpa"))
    np.testing.assert_array_equal(screen.condition, reference.condition)
    np.testing.assert_array_equal(screen.expression.toarray(), reference.expression.toarray())


def test_the_first_known_column_is_read_unless_another_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "cpa")
    cells = anndata.read_h5ad(path)
    cells.obs["condition"] = np.where(np.arange(cells.n_obs) < 8, "ctrl", "X9")
    cells.write_h5ad(path)
    assert "A1+B2" in datasets.norman2019(path).conditions
    assert datasets.norman2019(path, key="condition").conditions == ("control", "X9")
    with pytest.raises(InputError, match="no obs column 'nothing'"):
        datasets.norman2019(path, key="nothing")
    cells.obs = cells.obs[["gemgroup"]]
    cells.write_h5ad(path)
    with pytest.raises(InputError, match="none of the columns guide_ids, perturbation, condition.*gemgroup"):
        datasets.norman2019(path)


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("a download nobody asked for"))
    with pytest.raises(InputError, match=r"NormanWeissman2019_filtered.h5ad is not in .*download=True"):
        datasets.norman2019(folder=tmp_path)
    with pytest.raises(InputError, match="fetched only with a checksum"):
        datasets.norman2019(url="https://example.org/other.h5ad", download=True, folder=tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        datasets.norman2019(tmp_path / "gone.h5ad")


def test_without_a_connection_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(InputError, match="could not be downloaded.*no connection; fetch https://zenodo") as told:
        datasets.norman2019(folder=tmp_path, download=True)
    assert "\n" not in str(told.value)


@pytest.fixture()
def server(tmp_path: Path) -> Iterator[str]:
    """A web server of this machine with one file."""
    served = tmp_path / "served"
    served.mkdir()
    write(served, "scperturb")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served))) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{one.server_address[1]}/scperturb.h5ad"
        one.shutdown()
        thread.join()


def test_a_download_is_checked_and_kept(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (tmp_path / "served" / "scperturb.h5ad").read_bytes()
    right, wrong = f"md5:{hashlib.md5(content).hexdigest()}", f"md5:{32 * '0'}"
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="does not have the checksum"):
        datasets.norman2019(url=server, known_hash=wrong, download=True, folder=cache)
    assert not list(cache.glob("*.h5ad"))
    assert datasets.norman2019(url=server, known_hash=right, download=True, folder=cache).n_cells == 28
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("it is there already"))
    assert datasets.norman2019(url=server, known_hash=right, folder=cache).n_cells == 28
    (cache / "scperturb.h5ad").write_bytes(content[:-1])
    with pytest.raises(InputError, match="another release or damaged"):
        datasets.norman2019(url=server, known_hash=right, folder=cache)


def test_a_path_is_checked_where_a_checksum_is_given(tmp_path: Path) -> None:
    path = write(tmp_path, "plain")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert datasets.norman2019(path, known_hash=f"sha256:{digest.upper()}").n_cells == 28
    with pytest.raises(InputError, match=f"checksum {digest}, not 00"):
        datasets.norman2019(path, known_hash=f"sha256:{64 * '0'}")
    with pytest.raises(InputError, match="the checksum 'crc99:1' is none"):
        datasets.norman2019(path, known_hash="crc99:1")
