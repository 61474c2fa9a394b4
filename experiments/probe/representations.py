"""What is probed: latents of cells with and without being told the label, and what needs no model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import pvae_pyro as pv
from pvae_pyro.inference.responses import known_cells
from pvae_pyro.screen import CONTROL
from pvae_pyro.story.latents import times

Arrays = dict[str, NDArray[np.float32]]

PCA_FEW, PCA_MANY = "PCA, as many as responsive", "PCA, as many as all latents"
SUPERVISED = "LDA, as many as responsive"
DEPTH = "batch and depth"
BACKGROUND, RESPONSIVE = "background", "responsive, label withheld"
HIDDEN_BACKGROUND, HIDDEN_RESPONSIVE = "hidden layer, background", "hidden layer, responsive"
NOISE, TOLD = "noise, label taken off", "responsive, label told (circular)"


@torch.no_grad()
def latents(fit: pv.Fit, screen: pv.Screen) -> Arrays:
    """Posterior means of every cell of a screen whose conditions and batches were trained, globals at their centre.

    BACKGROUND (cells, background): of q(z_b | x), which never sees the label.
    RESPONSIVE (cells, latents): of q(z_r | x, u = control), every cell encoded as if it were a control cell.
    TOLD (cells, latents): of q(z_r | x, u) with the cell's own label, which is what a probe must not see.
    NOISE (cells, latents): (I - L) z_r - B z_b - m_u of TOLD, what is left of a cell when the mean of its label is taken off.
    HIDDEN_*: tanh layers of the two encoder networks (cells, hidden); left out where encoders are linear.
    """
    _, guide = fit.modules()
    g = guide.assemble(guide.central_values())
    control = fit.conditions.index(CONTROL)
    networks = {HIDDEN_BACKGROUND: guide.correct_background.first, HIDDEN_RESPONSIVE: guide.correct_responsive.first}
    seen: dict[str, torch.Tensor] = {}
    for name, layer in networks.items():
        if layer is not None:
            layer.register_forward_hook(lambda module, given, out, name=name: seen.update({name: torch.tanh(out)}))
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for _, cells in known_cells(fit, screen):
        z_b, _ = guide.background(cells)
        prior, told, _ = guide.responsive(cells, z_b, g)
        graph = g.graph if g.graph.dim() == 2 else g.graph[cells.condition]
        made = {TOLD: told, NOISE: told - prior - times(told - prior, graph)}
        untold = replace(cells, condition=torch.full_like(cells.condition, control))
        made |= {BACKGROUND: z_b, RESPONSIVE: guide.responsive(untold, z_b, g)[1], **seen}
        for name, value in made.items():
            parts.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def without_model(train: pv.Screen, test: pv.Screen, few: int, many: int) -> tuple[Arrays, Arrays]:
    """Axes of log expression from the training cells: principal components, and discriminants, which are told their labels as the
    model is (`few` of them at most); and batch with log depth, no expression at all."""
    x, y = train.expression.toarray(), test.expression.toarray()
    axes = PCA(min(many, *x.shape), svd_solver="covariance_eigh").fit(x)
    few_told = min(few, len(train.conditions) - 1)
    told = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=few_told).fit(x, train.condition)
    out = []
    for cells, screen in ((x, train), (y, test)):
        scores = axes.transform(cells)
        batch = np.array([train.batches.index(b) for b in screen.batches])[screen.batch]
        depth = np.column_stack([batch[:, None] == np.arange(len(train.batches)), np.log(screen.library)]).astype(np.float32)
        out.append({PCA_FEW: scores[:, :few], PCA_MANY: scores, SUPERVISED: told.transform(cells), DEPTH: depth})
    return out[0], out[1]
