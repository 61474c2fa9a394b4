"""Refusals that the parts of a story share: what was wrong, what was found, what to do."""

from __future__ import annotations

import math
from collections.abc import Collection

from ..errors import InputError


def positive(**values: float) -> None:
    """Raise InputError unless every value is a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be greater than 0, but {value} was given; choose a positive number.")


def not_negative(**values: float) -> None:
    """Raise InputError unless every value is a finite number of at least 0; 0 switches the thing off."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must not be negative, but {value} was given; 0 switches it off.")


def share(**values: float) -> None:
    """Raise InputError unless every value lies strictly between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise InputError(f"{name} must lie strictly between 0 and 1, but {value} was given; choose for example 0.5.")


def whole(low: int, **values: int) -> None:
    """Raise InputError unless every value is a whole number of at least `low`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise InputError(f"{name} must be a whole number of at least {low}, but {value!r} was given.")


def choice(known: Collection[str], **values: str) -> None:
    """Raise InputError unless every value is one of the known names."""
    for name, value in values.items():
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, but {value!r} was given; choose one.")
