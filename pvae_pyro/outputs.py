"""Output files and folders that appear whole or not at all, and never in place of somebody else's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pvae_pyro.errors import InputError


def check_new_file(path: Path, overwrite: bool) -> Path:
    """Refuse a path where no file can be put; InputError says why. Nothing is written."""
    _check_parent(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, but a file is to be written there; name a file in it.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; name another file or replace it with --overwrite.")
    return path


def check_new_folder(path: Path, overwrite: bool, marker: str, kind: str) -> Path:
    """Refuse a path where no folder can be put: only an empty or an own folder is ever replaced.

    `marker`: name of the JSON file that makes a folder an own one by its `made_by`, which is `kind`.
    """
    _check_parent(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, but a folder is to be written there; name another place.")
    if is_empty(path):
        return path
    if read_marker(path, marker, kind) is None:
        raise InputError(
            f"the folder {path} exists and was not written by {kind}, so it is not touched; name another one."
        )
    if not overwrite:
        raise InputError(
            f"the folder {path} exists already; name another one or replace it with --overwrite."
        )
    return path


def is_empty(path: Path) -> bool:
    """Whether a folder is missing or has nothing in it."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def check_distinct(paths: Sequence[Path]) -> None:
    """Refuse the same file as two outputs."""
    places = [path.resolve() for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"two outputs are to be written to {path}; name a file of its own for each.")


@contextmanager
def staged(*targets: Path) -> Iterator[list[Path]]:
    """Temporary siblings of files or folders, which take their places together if the block ends well.

    If it does not, the siblings vanish and what was there before stays.
    """
    siblings = [target.with_name(f".{target.name}.{os.getpid()}.part") for target in targets]
    try:
        yield siblings
        for sibling, target in zip(siblings, targets, strict=True):
            put(sibling, target)
    finally:
        for sibling in siblings:
            remove(sibling)


def put(source: Path, target: Path) -> None:
    """Rename a file or folder to `target`; what was there before goes away only when the new one is there."""
    if not target.is_dir():
        source.replace(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.replace(old)
    try:
        source.replace(target)
    except BaseException:
        old.replace(target)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_marker(folder: Path, marker: str, kind: str, facts: Mapping[str, Any]) -> None:
    """Write the JSON file that says who made a folder and from what, whole or not at all."""
    text = json.dumps({"made_by": kind, **facts}, indent=1, ensure_ascii=False)
    with staged(folder / marker) as (part,):
        part.write_text(text + "\n", encoding="utf-8")


def read_marker(folder: Path, marker: str, kind: str) -> dict[str, Any] | None:
    """What `write_marker` wrote; None where there is no such file or it is of another kind."""
    try:
        facts = json.loads((folder / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("made_by") == kind else None


def _check_parent(path: Path) -> None:
    if not path.name:
        raise InputError(f"the output {str(path)!r} has no name; name a file or folder to write.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written, there is no folder {path.parent}; make it first.")
