"""Tensors, arrays and settings of a fit as safetensors, npz and JSON: no pickle, so loading runs no code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import InputError


def part_to_dict(part: Any) -> Any:
    """A part of the story as plain data: dataclasses become {"class": name, ...fields}."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: part_to_dict(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return {"class": type(part).__name__, "module": type(part).__module__, **fields}
    return part


def part_from_dict(data: Any, known: dict[str, type]) -> Any:
    """Inverse of `part_to_dict` for classes in `known` (by class name)."""
    if isinstance(data, list):  # JSON has no tuples, frozen parts have no lists
        return tuple(part_from_dict(value, known) for value in data)
    if not isinstance(data, dict):
        return data
    name = data.get("class")
    if name not in known:
        raise InputError(
            f"the saved model uses the part {name!r} of {data.get('module')}, which this installation does not know; "
            "pass its class to Fit.load(..., parts=[...])."
        )
    fields = {k: part_from_dict(v, known) for k, v in data.items() if k not in ("class", "module")}
    return known[name](**fields)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors; shared or strided memory is copied first."""
    path.write_bytes(save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors; raises InputError for a missing or damaged file."""
    try:
        return dict(load_file(str(path)))
    except Exception as error:  # safetensors raises its own and OS errors alike
        raise InputError(
            f"{path.name} in {path.parent} cannot be read ({error}); the fit has to be run again."
        ) from error


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays (strings as unicode, never objects)."""
    np.savez_compressed(path, **{k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()})  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays; raises InputError for a missing or damaged file."""
    try:
        with (
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as data,
        ):  # numpy leaves a damaged file open
            return {name: data[name] for name in data.files}
    except Exception as error:  # zip, OS and value errors alike
        raise InputError(
            f"{path.name} in {path.parent} cannot be read ({error}); the fit has to be run again."
        ) from error


def save_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON; NaN is kept as null."""
    path.write_text(json.dumps(_clean(data), indent=1) + "\n")


def load_json(path: Path) -> dict[str, Any]:
    """Read JSON; raises InputError for a missing or damaged file."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.name} in {path.parent} cannot be read ({error}); is it a pvae_pyro run?"
        ) from error


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def flatten_optimiser(state: dict[str, Any]) -> dict[str, Tensor]:
    """Adam's state as named tensors."""
    out = {}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            out[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
    return out


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Write named tensors back into a fresh optimiser with the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    full = optimiser.state_dict()
    full["state"] = state
    optimiser.load_state_dict(full)
