"""A screen that was not measured yet: how many cells of which condition, and the scale on which a prior is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..labels import CONTROL, canonical, parse_condition
from ..story import checks


class Layout(Protocol):
    """What a prior needs to know of a screen; every `Screen` has it. N cells, C conditions, T targets, G genes."""

    @property
    def genes(self) -> NDArray[np.str_]: ...

    @property
    def targets(self) -> tuple[str, ...]: ...

    @property
    def conditions(self) -> tuple[str, ...]: ...

    @property
    def design(self) -> NDArray[np.float32]:
        """(C, T) doses."""
        ...

    @property
    def condition(self) -> NDArray[np.int64]:
        """(N,) index into conditions."""
        ...

    @property
    def batch(self) -> NDArray[np.int64]:
        """(N,) index into batches."""
        ...

    @property
    def batches(self) -> tuple[str, ...]: ...

    @property
    def library(self) -> NDArray[np.float64]:
        """(N,) counts of a cell over all genes."""
        ...


@dataclass(frozen=True)
class ScreenPlan:
    """Cells by condition of a screen without measurements, such as `{"control": 500, "A": 100, "B": 100, "A+B": 100}`.

    `genes`, `batches`: how many; cells take turns with batches. `library`: counts of every cell over all genes.
    What a measured screen would say in closed form has to be assumed, and is the same for all genes and latents:
    level: the mean log expression of control cells, log1p(10,000 / genes), as if genes shared the counts evenly;
    `loading`: length over genes of what one unit of a latent adds to the linear predictor, along random orthonormal directions;
    `effect`: typical size of an effect, in units of a latent (`effect_scale` of the story);
    `noise`: sd of a gene between cells, log scale; counts get the inverse dispersion 1 / noise^2.
    """

    cells: Mapping[str, int] = field(default_factory=lambda: {CONTROL: 500, "A": 100, "B": 100, "A+B": 100})
    genes: int = 200
    batches: int = 1
    library: float = 5000.0
    loading: float = 0.5
    effect: float = 1.0
    noise: float = 0.5

    def __post_init__(self) -> None:
        checks.whole(1, genes=self.genes, batches=self.batches)
        checks.positive(library=self.library, loading=self.loading, effect=self.effect, noise=self.noise)
        asked: dict[str, int] = {}
        for name, n in self.cells.items():
            checks.whole(1, **{f"cells of {name!r}": n})
            doses = parse_condition(name)
            known = canonical(doses, doses.values())
            if known in asked:
                raise InputError(f"cells names the condition {known!r} more than once; name every condition one time.")
            asked[known] = n
        if CONTROL not in asked or len(asked) < 2:
            found = ", ".join(asked) or "none"
            raise InputError(f"cells must name {CONTROL!r} and at least one perturbed condition, but names {found}; add them.")
        object.__setattr__(self, "cells", asked)

    def layout(self) -> Layout:
        """The cells one by one, condition after condition, control first and then by size and name, as a `Screen` has them."""
        doses = {name: parse_condition(name) for name in self.cells}
        conditions = sorted(doses, key=lambda name: (len(doses[name]), name))
        targets = sorted({target for named in doses.values() for target in named})
        design = np.array([[doses[name].get(target, 0.0) for target in targets] for name in conditions], dtype=np.float32)
        numbers = [self.cells[name] for name in conditions]
        width = len(str(max(self.genes, self.batches)))
        return _Planned(
            genes=np.array([f"gene{number + 1:0{width}d}" for number in range(self.genes)]),
            targets=tuple(targets),
            conditions=tuple(conditions),
            design=design,
            condition=np.repeat(np.arange(len(conditions)), numbers),
            batch=np.concatenate([np.arange(n) % self.batches for n in numbers]),
            batches=tuple(f"batch{number + 1:0{width}d}" for number in range(self.batches)),
            library=np.full(sum(numbers), float(self.library)),
        )


@dataclass(frozen=True, eq=False)
class _Planned:
    genes: NDArray[np.str_]
    targets: tuple[str, ...]
    conditions: tuple[str, ...]
    design: NDArray[np.float32]
    condition: NDArray[np.int64]
    batch: NDArray[np.int64]
    batches: tuple[str, ...]
    library: NDArray[np.float64]
