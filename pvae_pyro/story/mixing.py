"""An invertible mixing of latents: what a decoder does to them before its linear loadings (paper section 2, assumption i)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import checks


@dataclass(frozen=True)
class LeakyMixing:
    """`layers` times: a leaky activation, then a linear map, and at the latents a scale and a shift of each.

    The activation is a smooth LeakyReLU, a t + b sqrt(t^2 + c^2) with slopes from `slope` to 1 and a bend of width c, learnt for
    each layer from `bend` on: wide, so that a fit begins nearly linear. A sharp bend would hide from gradients what moving it
    does to the log determinant. It has an inverse in closed form, and so has the mixing.
    """

    layers: int = 3
    slope: float = 0.2
    bend: float = 5.0

    def __post_init__(self) -> None:
        checks.whole(1, layers=self.layers)
        checks.share(slope=self.slope)
        checks.positive(bend=self.bend)

    def build(self, size: int) -> Mixing:
        """The map of `size` latents, its linear parts drawn at random from torch's generator."""
        return Mixing(self, size)


class Mixing(nn.Module):
    """y = T(z) of (..., size); `unmix` is its inverse, and what is parametrised, since fits run it in every step."""

    def __init__(self, config: LeakyMixing, size: int) -> None:
        super().__init__()
        self.config = config
        self.a, self.b = (1 + config.slope) / 2, (1 - config.slope) / 2
        self.d = self.a**2 - self.b**2
        # far inside its bend an inverse activation is the multiplication by a / d, taken back here
        turns = [torch.linalg.qr(torch.randn(size, size))[0] * (self.d / self.a) for _ in range(config.layers)]
        self.linear = nn.ParameterList([nn.Parameter(turn) for turn in turns])
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(size)) for _ in range(config.layers)])
        self.log_bend = nn.Parameter(torch.full((config.layers,), math.log(config.bend)))
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.centre = nn.Parameter(torch.zeros(size))

    def unmix(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """z with T(z) = y, and log |det dz / dy| of every row: (..., size) and (...,)."""
        log_det = self.log_scale.sum()
        for linear, shift, log_bend in zip(self.linear, self.shift, self.log_bend, strict=True):
            y, steep = self._straighten(y @ linear + shift, log_bend)
            log_det = log_det + torch.linalg.slogdet(linear)[1] + steep.log().sum(-1)
        return y * self.log_scale.exp() + self.centre, log_det

    def _straighten(self, y: Tensor, log_bend: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of the activation and its slope, both of y's shape."""
        root = torch.sqrt(y.square() + self.d * torch.exp(2 * log_bend))
        return (self.a * y - self.b * root) / self.d, (self.a - self.b * y / root) / self.d

    def forward(self, z: Tensor) -> Tensor:
        """T(z), (..., size)."""
        y = (z - self.centre) * (-self.log_scale).exp()
        for linear, shift, log_bend in zip(reversed(self.linear), reversed(self.shift), self.log_bend.flip(0), strict=True):
            y = self.a * y + self.b * torch.sqrt(y.square() + torch.exp(2 * log_bend))
            y = torch.linalg.solve(linear.T, (y - shift).unsqueeze(-1)).squeeze(-1)
        return y

    @torch.no_grad()
    def turn_to(self, rotation: Tensor, y: Tensor) -> None:
        """Start at this rotation (size, size) from y to z: nearly linear for these y (cells, size), every bend amid them."""
        product = torch.eye(len(rotation))
        for linear in list(self.linear)[:-1]:
            product = product @ (linear * self.a / self.d)
        self.linear[-1].copy_(product.T @ rotation * (self.d / self.a))
        for linear, shift, log_bend in zip(self.linear, self.shift, self.log_bend, strict=True):
            y = y @ linear
            shift.copy_(-y.mean(0))
            y, _ = self._straighten(y + shift, log_bend)

    @torch.no_grad()
    def standardise(self, z: Tensor) -> None:
        """Make z = unmix(y) of these rows have mean 0 and sd 1 in every latent from now on."""
        sd = z.std(0)
        self.centre.copy_((self.centre - z.mean(0)) / sd)
        self.log_scale.sub_(sd.log())

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Make latent i the one that was order[i]."""
        for values in (self.linear[-1], self.shift[-1], self.log_scale, self.centre):
            values.copy_(values[..., order].clone())
