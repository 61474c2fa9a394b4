"""Public screens by name: read from a path the user gives, downloaded only when asked to, never without a checksum."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from pvae_pyro.errors import InputError
from pvae_pyro.labels import is_control_word
from pvae_pyro.reading import read_obs
from pvae_pyro.screen import Screen
from pvae_pyro.separators import STRONG_SEPARATORS

_LOG = logging.getLogger("pvae_pyro")

NORMAN_KEYS = ("guide_ids", "perturbation", "condition")
"""Columns that public files of Norman et al. label their cells by, the first that a file has is read."""
NORMAN_BATCHES = ("gemgroup", "batch")
NORMAN_FILE = "NormanWeissman2019_filtered.h5ad"
NORMAN_URL = f"https://zenodo.org/records/13350497/files/{NORMAN_FILE}"
NORMAN_HASH = "md5:c870e6967d91c017d9da827bab183cd6"


def norman2019(
    path: str | Path | None = None,
    *,
    key: str | None = None,
    download: bool = False,
    url: str = NORMAN_URL,
    known_hash: str | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> Screen:
    """The CRISPRa screen of Norman et al. (Science 2019, GEO GSE133344): singles and pairs in K562 cells.

    path: an h5ad file in one of its public layouts. key: its column of labels, default the first it has of
    ``guide_ids`` ('' and 'A,B'), ``perturbation`` ('control', 'A_B') and ``condition`` ('ctrl', 'A+ctrl', 'A+B'). The
    batch is ``gemgroup`` or ``batch`` where the file has one. options go to ``Screen.from_anndata``.

    Without a path the file is looked for in folder (default: the cache folder of the user). It is fetched from url only
    with ``download=True``, and what was fetched is checked against known_hash ("md5:..." or "sha256:..."). Known are:

    - scPerturb's file, the default: raw counts, 111,445 cells x 33,694 genes, 105 singles, 131 pairs, 699 MB, Zenodo record
      13350497. Its MD5 is quoted alike by several public repositories (such as gao-lab/CASCADE); we had no way to check it.
    - ``Norman2019_raw.h5ad``, which the PerturbedVAE paper and discrepancy_vae use: 108,497 cells x 5,000 genes, already
      log-normalised in spite of its name, one member of https://dl.fbaipublicfiles.com/dlp/cpa_binaries.tar. We know of
      no checksum for it: fetch and unpack it yourself and give its path.

    Raises InputError, in one sentence, for a file that is not there or cannot be used, a column it does not have, no
    connection, another checksum, and a url of one's own without a known_hash.
    """
    found = Path(path).expanduser() if path is not None else _cached(url, known_hash, download, folder)
    if path is not None and known_hash is not None:
        _verify(found, known_hash)
    obs = read_obs(found)
    columns = [str(name) for name in obs.columns]
    if key is None:
        key = next((name for name in NORMAN_KEYS if name in columns), None)
        if key is None:
            raise InputError(
                f"{found.name} has none of the columns {', '.join(NORMAN_KEYS)} that public files of this screen label "
                f"their cells by; its columns are {', '.join(columns) or 'none'}: name the one to read (key)."
            )
    options.setdefault("batch_key", next((name for name in NORMAN_BATCHES if name in columns), None))
    if key in columns:  # otherwise refused, with the columns there are, when the screen is read
        options.setdefault("separator", _separator(obs[key]))
    return Screen.from_anndata(found, key, **options)


def _separator(labels: pd.Series) -> str | None:
    """ "_" where nothing else can join targets: no target of this screen has one, and some have no single of their own."""
    pairs = [label for label in map(str, labels.unique()) if not is_control_word(label)]
    joined = any(mark in label for label in pairs for mark in STRONG_SEPARATORS)
    return "_" if not joined and any("_" in label for label in pairs) else None


def _cached(url: str, known_hash: str | None, download: bool, folder: str | Path | None) -> Path:
    """The file in the cache, its checksum verified; fetched first if that was asked for."""
    import pooch

    name = url.rstrip("/").rsplit("/", 1)[-1]
    if known_hash is None:
        known_hash = NORMAN_HASH if url == NORMAN_URL else None
    if known_hash is None:
        raise InputError(f"{name} is fetched only with a checksum; give one (known_hash='sha256:...') or a path.")
    place = Path(folder).expanduser() if folder is not None else Path(pooch.os_cache("pvae_pyro"))
    if (place / name).exists():
        _verify(place / name, known_hash)
        return place / name
    by_hand = f"fetch {url} where there is a connection and give the path of the file"
    if not download:
        raise InputError(
            f"{name} is not in {place}; {by_hand}, or ask for the download (download=True; scPerturb's file is 699 MB)."
        )
    import requests

    _LOG.info("Downloading %s to %s.", url, place)
    quiet = pooch.get_logger()
    level = quiet.level
    quiet.setLevel(logging.WARNING)  # it would repeat the line above
    try:
        pooch.retrieve(url, known_hash, fname=name, path=place)
    except (requests.exceptions.RequestException, OSError) as problem:  # which a bad address is, too
        raise InputError(
            f"{name} could not be downloaded ({type(problem).__name__}), perhaps there is no connection; {by_hand}."
        ) from None
    except ValueError as problem:
        raise InputError(
            f"the downloaded {name} does not have the checksum {known_hash} ({str(problem).splitlines()[0][:80]}) and was "
            "thrown away; try again, or give the checksum of a newer release (known_hash)."
        ) from None
    finally:
        quiet.setLevel(level)
    return place / name


def _verify(path: Path, known_hash: str) -> None:
    """Raises InputError for a missing file and for one with another checksum."""
    import pooch

    if not path.is_file():
        raise InputError(f"the file {str(path)!r} does not exist; give the path of an h5ad file.")
    algorithm, _, digest = known_hash.rpartition(":")
    try:
        own = pooch.file_hash(str(path), alg=algorithm or "sha256")
    except (ValueError, AttributeError):
        raise InputError(f"the checksum {known_hash!r} is none; write 'sha256:...' or 'md5:...'.") from None
    if own != digest.lower():
        raise InputError(
            f"{path.name} has the {algorithm or 'sha256'} checksum {own}, not {digest.lower()}; it is another release or "
            "damaged: fetch it again, or give the checksum of what you have (known_hash)."
        )
