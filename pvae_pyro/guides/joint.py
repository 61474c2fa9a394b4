"""What families share that draw many sites from one joint law: a vector of them, stated as one auxiliary site."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from .family import placed
from .mean_field import MeanField

AUXILIARY = "joint"


class Joint(MeanField):
    """The sites `covered` have one joint law on their unconstrained scale, the others are mean-field.

    A subclass says in `draw` how a vector is drawn and in `log_density` how dense it lies. The entropy's gradient is taken along
    the drawn value only, parameters of the density held fixed ("sticking the landing", Roeder et al. 2017, arXiv 1703.09194): its
    mean is the same, and where q is exact it has no noise at all. That matters for sites that the data do not reach: Adam
    would make a random walk of their noise, which closed-form KL spares the mean-field guide.
    """

    def cover(self, names: Iterable[str]) -> None:
        """Take these sites into the joint law, in the order of the program."""
        chosen = set(names)
        self.covered = tuple(name for name in self.loc if name in chosen)
        self.sizes = [self.loc[name].numel() for name in self.covered]

    covered: tuple[str, ...]
    sizes: list[int]

    def draw(self) -> Tensor:
        """A differentiable draw of all covered sites, (sum of sizes,)."""
        raise NotImplementedError

    def log_density(self, u: Tensor) -> Tensor:
        """Log density at u, differentiable in u alone."""
        raise NotImplementedError

    def flat(self, entries: torch.nn.ParameterDict) -> Tensor:
        """`loc` or `log_scale` of the covered sites as one vector."""
        return torch.cat([entries[name].reshape(-1) for name in self.covered])

    def laws(self) -> dict[str, Any]:
        if not self.covered:
            return super().laws()
        u = self.draw()
        law = Delta(u, log_density=self.log_density(u), event_dim=1)
        u = pyro.sample(AUXILIARY, law, infer={"is_auxiliary": True})
        return super().laws() | self._placed(u)

    def _placed(self, u: Tensor) -> dict[str, Any]:
        pieces = zip(self.covered, u.split(self.sizes), strict=True)
        return {name: placed(self.sites[name], piece.reshape(self.loc[name].shape)) for name, piece in pieces}
