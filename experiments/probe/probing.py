"""The probe: multinomial logistic regression, and the three shares that say how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.floating]
Labels = NDArray[np.int64]
FLOORS = 3  # permutations


def scores(x: Array, y: Labels, new_x: Array, new_y: Labels, seed: int) -> dict[str, float]:
    """A probe trained on cells x (cells, features) with labels y, scored on other cells of the same labels.

    balanced_accuracy: mean over labels of the share of their cells that are named right; top_1, top_5: share of cells with
    their label first, among the first five. floor_*: the same with permuted labels of the training cells, mean of FLOORS.
    """
    out = _scored(_trained(x, y), new_x, new_y)
    generator = np.random.default_rng(seed)
    floors = [_scored(_trained(x, generator.permutation(y)), new_x, new_y) for _ in range(FLOORS)]
    return out | {f"floor_{name}": float(np.mean([one[name] for one in floors])) for name in out}


def cross_validated(x: Array, y: Labels, seed: int) -> float:
    """Balanced accuracy inside one set of cells: five stratified folds, each 80 % trained and 20 % scored."""
    named = np.empty_like(y)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y):
        named[test] = _trained(x[train], y[train]).predict(x[test])
    return float(balanced_accuracy_score(y, named))


def chance(y: Labels) -> Mapping[str, float]:
    """What naming labels at random gives: 1 / labels, and 5 / labels for the first five."""
    n = len(np.unique(y))
    return {"balanced_accuracy": 1 / n, "top_1": 1 / n, "top_5": min(5 / n, 1.0)}


def _trained(x: Array, y: Labels) -> Pipeline:
    """Features to unit variance; L2 penalty 1 (scikit-learn's default); labels weigh alike whatever their number of cells."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=200)).fit(x, y)


def _scored(probe: Any, x: Array, y: Labels) -> dict[str, float]:
    odds, labels = probe.decision_function(x), probe.classes_
    named = labels[odds.argmax(1)]
    top = top_k_accuracy_score(y, odds, k=min(5, len(labels) - 1), labels=labels)
    shares = (balanced_accuracy_score(y, named), (named == y).mean(), top)
    return dict(zip(("balanced_accuracy", "top_1", "top_5"), map(float, shares), strict=True))
