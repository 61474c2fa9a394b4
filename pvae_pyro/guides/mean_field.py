"""Independent normals on the unconstrained scale."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from .family import Family


class MeanField(Family):
    """q(theta) = prod Normal(loc, scale), carried to each site's support; KL to normal and log-normal priors in closed form."""

    def laws(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, loc in self.loc.items():
            site, scale = self.sites[name], self.log_scale[name].exp()
            if isinstance(site.support, torch.distributions.ExpTransform) and not site.event_dim:
                out[name] = dist.LogNormal(loc, scale)
                continue
            base = dist.Normal(loc, scale)
            is_identity = isinstance(site.support, torch.distributions.ComposeTransform) and not site.support.parts
            out[name] = base if is_identity else dist.TransformedDistribution(base, [site.support])
            if site.event_dim and is_identity:
                out[name] = base.to_event(site.event_dim)
        return out
