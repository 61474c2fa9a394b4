"""A normalising flow on the small global sites: skewed and dependent hyper-parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions.transforms as T
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn
from torch.func import functional_call

from ..story import checks
from .amortized import Amortized
from .family import Family
from .joint import Joint
from .sites import Site

BINS, BOUND = 8, 4.0  # of the splines, in posterior sds; beyond the bound they are the identity


@dataclass(frozen=True, kw_only=True)
class Flow(Amortized):
    """Amortized latents; hyper-parameters, which all targets share, follow a normalising flow, the other globals are mean-field.

    u = loc + scale * flow(eps), eps ~ Normal(0, I):  `layers` affine couplings (Dinh et al. 2017, arXiv 1605.08803), which make
    sites depend on each other, then a monotone spline for each number (linear rational; Dolatabadi et al. 2020, arXiv
    2001.05168), which skews it. The flow starts at the identity, so that the warm start is kept.
    It covers every continuous site outside the plate of targets that has at most `largest` numbers: widths, scales and rates
    (kappa, composition_scale, capacity, effect_scale, inclusion ...), in screens of usual size not the coupling, edges or
    noise, and never effects; `family.covered` of the guide names them. `hidden`: width of the coupling networks.
    """

    layers: int = 2
    hidden: int = 32
    largest: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(0, layers=self.layers)
        checks.whole(1, hidden=self.hidden, largest=self.largest)

    def family(self, sites: list[Site]) -> Family:
        return FlowFamily(sites, self)


class FlowFamily(Joint):
    """The covered sites follow u = loc + scale * flow(eps), the others are independent normals."""

    def __init__(self, sites: list[Site], config: Flow) -> None:
        super().__init__(sites, config.initial_scale)
        self.cover(name for name in self.loc if self._is_small(self.sites[name], config.largest))
        self.flow = StandardFlow(sum(self.sizes), config.layers, config.hidden) if self.covered else None

    def _is_small(self, site: Site, largest: int) -> bool:
        small = self.loc[site.name].numel() <= largest and not site.apart
        return small and all(plate.name != "targets" for plate in site.plates)

    def draw(self) -> Tensor:
        assert self.flow is not None
        loc = self.flat(self.loc)
        return loc + self.flat(self.log_scale).exp() * self.flow.push(torch.randn_like(loc))

    def log_density(self, u: Tensor) -> Tensor:
        assert self.flow is not None
        loc, log_scale = self.flat(self.loc).detach(), self.flat(self.log_scale).detach()
        held = {name: p.detach() for name, p in self.flow.named_parameters()}
        w = (u - loc) / log_scale.exp()
        return functional_call(self.flow, held, (w,)) - log_scale.sum()

    def centre(self) -> dict[str, Tensor]:
        """As in every family; of covered sites the image of the middle of the flow."""
        out = super().centre()
        if self.flow is None:
            return out
        loc = self.flat(self.loc)
        u = loc + self.flat(self.log_scale).exp() * self.flow.push(torch.zeros_like(loc))
        return out | {name: law.v for name, law in self._placed(u).items()}


class StandardFlow(nn.Module):
    """A bijection of R^n that starts at the identity; called with w, the log density of w = push(eps), eps ~ Normal(0, I)."""

    def __init__(self, n: int, layers: int, hidden: int) -> None:
        super().__init__()
        split = n // 2
        parts = [_coupling(split, n - split, hidden) for _ in range(layers if n > 1 else 0)]
        self.couplings: Any = nn.ModuleList(parts)
        self.spline: Any = _Spline(n, count_bins=BINS, bound=BOUND)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name in ("unnormalized_widths", "unnormalized_heights", "unnormalized_lambdas"):
                getattr(self.spline, name).zero_()
            self.spline.unnormalized_derivatives.fill_(math.log(math.expm1(1)))  # softplus makes it 1

    def push(self, eps: Tensor) -> Tensor:
        """flow(eps)."""
        for coupling in self.couplings:
            eps = coupling(eps).flip(-1)  # the other half's turn
        return self.spline(eps.flip(-1) if len(self.couplings) % 2 else eps)

    def forward(self, w: Tensor) -> Tensor:
        eps = self.spline.inv(w)
        jacobian: Tensor = self.spline.log_abs_det_jacobian(eps, w).sum(-1)
        eps = eps.flip(-1) if len(self.couplings) % 2 else eps
        for coupling in reversed(self.couplings):
            w = eps.flip(-1)
            eps = coupling.inv(w)
            jacobian = jacobian + coupling.log_abs_det_jacobian(eps, w)
        return -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1) - jacobian


def _coupling(given: int, moved: int, hidden: int) -> T.AffineCoupling:
    network: Any = DenseNN(given, [hidden], [moved, moved], nonlinearity=nn.Tanh())
    nn.init.zeros_(network.layers[-1].weight)
    nn.init.zeros_(network.layers[-1].bias)
    return T.AffineCoupling(given, network)


class _Spline(T.Spline):
    """Pyro's spline without a floor under its derivatives, which would keep it from being the identity at the start."""

    def spline_op(self, x: Tensor, **settings: object) -> tuple[Tensor, Tensor]:
        return super().spline_op(x, min_derivative=0.0, **settings)  # type: ignore[no-untyped-call]
