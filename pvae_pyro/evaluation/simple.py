"""Simple rules for combinations that papers compare with, from training means only; `baselines` adds them to its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pvae_pyro.evaluation.effects import Request, SingleEffects

if TYPE_CHECKING:
    from pvae_pyro.summary import ConditionSummary

Array = NDArray[np.float64]

TRAIN_MEAN = "mean of the training perturbations"
COMBINATIONS_MEAN = "mean of the training combinations"
CELL_MEAN = "mean of the perturbed training cells"
MATCHING_MEAN = "matching mean"
MAX_EFFECT = "larger single effect"
NEAREST = "nearest training combination"
BILINEAR_RIDGE = "bilinear ridge on gene embeddings"

DESCRIPTIONS = {
    TRAIN_MEAN: "the same for all, training conditions weigh equally",
    COMBINATIONS_MEAN: "the same, of combinations only",
    CELL_MEAN: "the same for all, training cells weigh equally",
    MATCHING_MEAN: f"average of the single means, the {TRAIN_MEAN} for one not trained",
    MAX_EFFECT: "control + per gene the single shift of larger size",
    NEAREST: (
        "shift of the training combination that shares a target and whose other target is most alike, "
        "rescaled; additive where none shares one"
    ),
    BILINEAR_RIDGE: "linear in the principal gene scores of the targets' own genes (Ahlmann-Eltze et al. 2025)",
}
COMPONENTS = 10
RIDGE = 0.1


def simple_means(
    training: ConditionSummary, effects: SingleEffects, asked: Request, trained: Request, shifts: Array
) -> dict[str, Array]:
    """Predicted means (C, G) for the conditions asked, by rule.

    trained: the training combinations of trained singles, shifts (N, G) theirs from control. A rule that needs
    combinations is there only with some, bilinear ridge only where two targets or more are measured genes.
    """
    control, count = effects.control, len(asked.design)
    perturbed = (np.asarray(training.design) != 0).any(axis=1)
    if not perturbed.any():
        return {}
    centre = np.asarray(training.mean[perturbed].mean(axis=0), float)
    n = np.asarray(training.n_cells, float)[perturbed]
    doses = asked.design * effects.seen
    each = [
        row[row != 0, None] * effects.shift[row != 0] for row in doses
    ]  # shifts of a condition's trained targets
    share = 1 / np.maximum(asked.n_targets, 1)[:, None]
    missing = (asked.n_targets - asked.seen)[:, None]
    found = {
        TRAIN_MEAN: np.tile(centre, (count, 1)),
        CELL_MEAN: np.tile(n @ training.mean[perturbed] / n.sum(), (count, 1)),
        MATCHING_MEAN: control + share * (doses @ effects.shift + missing * (centre - control)),
        MAX_EFFECT: control + np.stack([_largest(one, len(control)) for one in each]),
    }
    if len(shifts):
        found[COMBINATIONS_MEAN] = np.tile(control + shifts.mean(axis=0), (count, 1))
        found[NEAREST] = control + np.stack([_nearest(row, effects, trained, shifts) for row in doses])
    ridge = bilinear_ridge(training, perturbed, asked.design)
    return found if ridge is None else found | {BILINEAR_RIDGE: ridge}


def _largest(shifts: Array, genes: int) -> Array:
    """Per gene the shift of larger size among (K, G), the first of equals; zero without any."""
    if not len(shifts):
        return np.zeros(genes)
    return np.asarray(shifts[np.abs(shifts).argmax(axis=0), np.arange(genes)])


def _nearest(doses: Array, effects: SingleEffects, trained: Request, shifts: Array) -> Array:
    """Shift of the most similar training pair that shares one target with a pair, scaled by the sums' lengths."""
    additive = doses @ effects.shift
    own = set(np.flatnonzero(doses).tolist())
    best, chosen = -np.inf, None
    for row, other in enumerate(trained.design):
        theirs = set(np.flatnonzero(other).tolist())
        if len(own) != 2 or len(theirs) != 2 or len(own & theirs) != 1:
            continue
        mine, partner = (effects.shift[min(side)] for side in (own - theirs, theirs - own))
        size = float(np.linalg.norm(mine) * np.linalg.norm(partner))
        alike = float(mine @ partner) / size if size > 0 else 0.0
        if alike > best:
            best, chosen = alike, row
    if chosen is None:
        return np.asarray(additive)
    length = float(np.linalg.norm(trained.design[chosen] @ effects.shift))
    factor = float(np.linalg.norm(additive)) / length if length > 0 else 1.0
    return np.asarray(factor * shifts[chosen])


def bilinear_ridge(
    training: ConditionSummary,
    perturbed: NDArray[np.bool_],
    design: Array,
    components: int = COMPONENTS,
    penalty: float = RIDGE,
) -> Array | None:
    """``Y ~ G W P' + b``: G gene scores, P the scores of the targets' own genes, W by ridge, b the training mean.

    perturbed (conditions,) marks the rows of training that are fitted, design (C, T) holds doses of its targets. Means (C, G);
    None where fewer than two targets are measured genes.
    """
    place = {str(name): column for column, name in enumerate(training.genes)}
    genes = [place.get(target, -1) for target in training.targets]
    if sum(gene >= 0 for gene in genes) < 2:
        return None
    y = np.asarray(training.mean[perturbed], float)
    b = y.mean(axis=0)
    _, _, directions = np.linalg.svd(y - b, full_matrices=False)
    scores = directions[:components].T  # (G, K)
    targets = np.array([scores[gene] if gene >= 0 else np.zeros(scores.shape[1]) for gene in genes])
    p = np.asarray(training.design, float)[perturbed] @ targets
    gram = p.T @ p
    # in units of the embeddings' size, which shrinks as the number of genes grows
    ridge = penalty * max(float(np.trace(gram)) / len(gram), 1e-12)
    w = scores.T @ (y - b).T @ p @ np.linalg.inv(gram + ridge * np.eye(len(gram)))
    return np.asarray(b + (design @ targets) @ w.T @ scores.T)
