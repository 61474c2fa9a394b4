"""Shared fixtures: where the data of `shared/data` lies, if it is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a file of the shared data folder; the test skips, saying so, where the file is missing."""
    folder = Path(os.environ.get("PVAE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

    def locate(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{name} is not in the shared data folder (set PVAE_DATA)")
        return path

    return locate
