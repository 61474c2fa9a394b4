"""What a fit refuses before it begins, in a sentence, and where it runs."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from ..screen import CONTROL, Screen
from ..story import PerturbedVAE


def choose_device(device: str) -> torch.device:
    """'auto' (CUDA if there is one), 'cpu' or 'cuda'."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, but {device!r} was given.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device cuda was asked for, but PyTorch finds no CUDA device here; use --device cpu or auto."
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def check_screen(model: PerturbedVAE, screen: Screen, seed: int) -> None:
    """Raise InputError for a screen that cannot start this model."""
    if seed < 0:
        raise InputError(f"seed must not be negative, but {seed} was given.")
    if CONTROL not in screen.conditions or len(screen.conditions) < 2:
        raise InputError(
            "the training screen needs control cells and at least one perturbed condition; check the split."
        )
    control = int((screen.condition == screen.conditions.index(CONTROL)).sum())
    if control < 2 or screen.n_cells < len(screen.conditions) + 2 or screen.n_genes < 3:
        raise InputError(
            f"{screen.n_cells} cells ({control} of control) in {len(screen.conditions)} conditions and {screen.n_genes} genes "
            "are too few: the noise of cells takes two control cells, others that share a condition, and three genes."
        )
    if screen.expression.nnz in (0, np.prod(screen.expression.shape)) and screen.expression.max() == screen.expression.min():
        raise InputError("all values of the training cells are the same, so there is nothing to learn; check the matrix.")
    if model.likelihood.observes == "counts" and screen.counts is None:
        raise InputError(
            "the negative-binomial likelihood needs raw counts, but the input is normalised; use --layer or gaussian."
        )
