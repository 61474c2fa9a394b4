"""Versions of what a fit was made with."""

from __future__ import annotations

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that decide its numbers."""
    out = {"python": platform.python_version()}
    for name in ("pvae-pyro", "torch", "pyro-ppl", "numpy", "scipy", "anndata"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out
