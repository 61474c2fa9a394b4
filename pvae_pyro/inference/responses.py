"""What a fit says of cells that escaped: the penetrance of every target, and the odds of every cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..guides.responsive import Responding, encode
from ..story import Cells

if TYPE_CHECKING:
    from ..screen import Screen
    from .fitting import Fit

CHUNK = 2048  # cells that are dense at a time


def penetrance_table(targets: Sequence[str], shared: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """See `Fit.penetrance_table`; `shared`: the story's shared values, draw by draw."""
    rho = torch.stack([one["penetrance"].squeeze(-1) for one in shared]).numpy()
    low, high = np.quantile(rho, [0.05, 0.95], axis=0)
    return pd.DataFrame({"target": list(targets), "mean": rho.mean(0), "sd": rho.std(0), "q05": low, "q95": high})


@torch.no_grad()
def responding(fit: Fit, screen: Screen) -> NDArray[np.float32]:
    """See `Fit.responding`; of a single run."""
    _, guide = fit.modules()
    g = guide.assemble(guide.central_values())
    out = np.ones(screen.n_cells, dtype=np.float32)
    for rows, cells in known_cells(fit, screen):
        z_b, _ = guide.background(cells)
        q = encode(guide.story.responsive_law(g, z_b, cells.condition), guide, cells, z_b, g)
        if isinstance(q, Responding):
            out[rows] = q.probability.numpy()
    return out


def known_cells(fit: Fit, screen: Screen) -> Iterator[tuple[slice, Cells]]:
    """Cells of a screen as the fitted story sees them, some at a time, with their rows. Raises InputError as `Fit.responding`."""
    unknown = [c for c in screen.conditions if c not in fit.conditions]
    if unknown:
        raise InputError(f"the condition {unknown[0]!r} was not trained, so nothing is known of its cells; leave it out.")
    new = [b for b in screen.batches if b not in fit.batches]
    if new:
        raise InputError(f"the batch {new[0]!r} was not trained, so its cells cannot be judged; leave it out.")
    seen = screen.select_genes([str(g) for g in fit.genes[fit.active]])
    observed = seen.counts if fit.model.likelihood.observes == "counts" else seen.expression
    if observed is None:
        raise InputError("the model observes counts, but the cells are normalised; give raw counts.")
    condition = np.array([fit.conditions.index(c) for c in screen.conditions])[screen.condition]
    batch = np.array([fit.batches.index(b) for b in screen.batches])[screen.batch]
    for start in range(0, screen.n_cells, CHUNK):
        rows = slice(start, start + CHUNK)
        x, y = (torch.from_numpy(m[rows].toarray()) for m in (seen.expression, observed))
        library = torch.as_tensor(screen.library[rows], dtype=x.dtype)
        yield rows, Cells(x, y, torch.as_tensor(condition[rows]), torch.as_tensor(batch[rows]), library)
