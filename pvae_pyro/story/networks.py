"""The decoder's linear predictor, and the bounded correction that encoders add to their linear maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Correction(nn.Module):
    """MLP with one tanh hidden layer whose last layer starts at zero: it adds nothing until it learns something.

    tanh bounds it, so that an unusual cell cannot be thrown far by it. `hidden` = 0 switches it off.
    """

    def __init__(self, n_in: int, hidden: int, n_out: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.first = nn.Linear(n_in, hidden) if hidden else None
        self.last = nn.Linear(hidden, n_out) if hidden else None
        if self.last is not None:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None or self.last is None:
            return x.new_zeros(x.shape[:-1] + (self.n_out,))
        return self.last(torch.tanh(self.first(x)))


class Decoder(nn.Module):
    """eta_c = b_batch + W_r z_r + W_b z_b; the likelihood's link makes it non-linear in expression.

    `intercept` (batches, genes), `responsive` (latents, genes), `background` (background latents, genes).
    """

    def __init__(self, n_batches: int, n_responsive: int, n_background: int, n_genes: int) -> None:
        super().__init__()
        self.intercept = nn.Parameter(torch.zeros(n_batches, n_genes))
        self.responsive = nn.Parameter(torch.randn(n_responsive, n_genes) * 0.1)
        self.background = nn.Parameter(torch.randn(n_background, n_genes) * 0.1)

    @torch.no_grad()
    def keep_zero(self, outside: Tensor) -> None:
        """Put responsive loadings to zero where `outside` (latents, genes) is true, and keep them there during training."""
        self.responsive.masked_fill_(outside, 0.0)
        # an optimiser without weight decay does not move what has never had a gradient
        self.responsive.register_hook(lambda gradient: gradient.masked_fill(outside.to(gradient.device), 0.0))

    def linear(self, z_b: Tensor, z_r: Tensor, offset: Tensor | None = None) -> Tensor:
        """The part without batch, shape (..., genes); `offset` (latents, genes) of a draw is added to the responsive loadings."""
        responsive = self.responsive if offset is None else self.responsive + offset
        return z_r @ responsive + z_b @ self.background

    def forward(self, z_b: Tensor, z_r: Tensor, batch: Tensor, offset: Tensor | None = None) -> Tensor:
        return self.intercept[batch] + self.linear(z_b, z_r, offset)
