"""Warm start, SVI loop, checkpoints and diagnosis: from a Screen to a Fit.

`Fit` and `fit` are loaded on first use, since evaluation and prediction import single modules of this room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diagnosis import Finding
    from .edges import agreeing_edges
    from .fitting import Fit, fit
    from .svi import FitSettings, NotFinite

__all__ = ["Finding", "Fit", "FitSettings", "NotFinite", "agreeing_edges", "fit"]

_WHERE = {
    "Finding": "diagnosis",
    "Fit": "fitting",
    "agreeing_edges": "edges",
    "fit": "fitting",
    "FitSettings": "svi",
    "NotFinite": "svi",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
