"""Saturating composition plus low-rank pairwise interactions, learnt from combinations in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .. import checks
from ..plates import Plates
from .saturating import Saturating
from .scale import log_normal


@dataclass(frozen=True)
class Bilinear(Saturating):
    """What `Saturating` says, plus what pairs of such effects do: m_d += sum_{p<q} u_p u_q sum_f F_f(w_p, w_q) C_fk.

    F(w_p, w_q) holds the products of psi_p = (bias, phi_p) and psi_q, symmetric in the two; phi_p is the effect in control-cell
    sds along the `rank` leading directions of effects, shortened to |w| / sqrt(c^2 + |w|^2) by the capacity c, so that
    no product of large effects runs away. `bias` lets an effect change its partner whatever that is.
    `pairing` (features, latents) C_fk ~ Normal(0, g scale_k), features = (rank + 1)(rank + 2) / 2
    `pairing_scale` g ~ LogNormal(log pairing, pairing_spread): how much of what pairs do follows a rule

    Without combinations in training C is drawn from its prior: the interaction of a new pair is then wide and centred on zero,
    alike for alike pairs. `rank` = 0 is `Saturating`, and with `capacity` = inf `Additive`.
    Source: own; as a Gaussian process over pairs this is a product kernel, linear in each target (Ahlmann-Eltze et al. 2025,
    10.1038/s41592-025-02772-6, use an unsaturated bilinear form). Settings: `Saturating`, chosen on even doubles.
    """

    rank: int = 16
    bias: float = 0.2
    pairing: float = 3.0
    pairing_spread: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(0, rank=self.rank)
        checks.positive(pairing=self.pairing)
        checks.not_negative(bias=self.bias, pairing_spread=self.pairing_spread)

    def buffers(self, latents: int) -> dict[str, Tensor]:
        """Fixed axes, from the warm start: `directions` (latents, rank) of effects; `basis` (features, features) turns F so
        that the posterior of C factorises."""
        rank = min(self.rank, latents)
        n = (rank + 1) * (rank + 2) // 2 if rank else 0
        return {"directions": torch.eye(latents)[:, :rank], "basis": torch.eye(n)}

    def sample(self, plates: Plates, like: Tensor) -> dict[str, Tensor]:
        values = super().sample(plates, like)
        n = len(self.buffers(len(like))["basis"])
        if n:
            strength = values["pairing_scale"] = log_normal("pairing_scale", self.pairing, self.pairing_spread, like)
            with pyro.plate("features", n, dim=-2), plates.latents:
                values["pairing"] = pyro.sample("pairing", dist.Normal(like.new_zeros(n, len(like)), strength * like))
        return values

    def compose(self, values: dict[str, Any], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        rule = super().compose(values, design, effects, unit)
        if not values["directions"].shape[1]:
            return rule
        return rule + self.features(values, design, effects, unit) @ values["pairing"]

    def features(self, values: dict[str, Any], design: Tensor, effects: Tensor, unit: Tensor) -> Tensor:
        """F summed over the pairs of each condition, (conditions, features); zero for singles and control."""
        w = unit * effects
        phi = w @ values["directions"] / (values["capacity"].square() + w.square().sum(-1, keepdim=True)).sqrt()
        psi = torch.cat([torch.full_like(phi[:, :1], self.bias), phi], -1)
        # sum over p < q of u_p u_q (psi_p psi_q' + psi_q psi_p') / 2 = (S S' - sum_p u_p^2 psi_p psi_p') / 2
        total = design @ psi
        square = torch.einsum("dp,pi,pj->dij", design.square(), psi, psi)
        products = 0.5 * (total.unsqueeze(-1) * total.unsqueeze(-2) - square)
        rows, columns = torch.triu_indices(psi.shape[1], psi.shape[1], device=psi.device)
        weight = torch.where(rows == columns, psi.new_tensor(1.0), psi.new_tensor(2.0).sqrt())  # F . F is the kernel
        return (products[:, rows, columns] * weight) @ values["basis"]
