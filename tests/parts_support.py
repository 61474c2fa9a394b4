"""Choices of parts that tests go through: every effect prior with every likelihood, and every other part by itself."""

from __future__ import annotations

import itertools

from pvae_pyro.story import PARTS

SEAMS = ("effects", "graph", "composition", "likelihood")
_FIRST = {seam: next(iter(PARTS[seam])) for seam in SEAMS}
_PRODUCT = [_FIRST | {"effects": e, "likelihood": x} for e, x in itertools.product(PARTS["effects"], PARTS["likelihood"])]
_SINGLE = [_FIRST | {seam: name} for seam in ("graph", "composition") for name in PARTS[seam]]
CHOICES = [tuple(one.values()) for one in {tuple(c.items()): c for c in _PRODUCT + _SINGLE}.values()]
