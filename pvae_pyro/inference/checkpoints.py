"""State of an unfinished fit after an epoch, so that it can go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from . import storage
from .svi import HISTORY, Trainer


def save_checkpoint(folder: Path, trainer: Trainer) -> None:
    """Write parameters, optimiser, random generators and history; the old checkpoint stays until the new one is whole."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {f"story.{k}": v for k, v in trainer.story.state_dict().items()}
    tensors |= {f"guide.{k}": v for k, v in trainer.guide.state_dict().items()}
    tensors |= storage.flatten_optimiser(trainer.optimiser.state_dict())
    tensors["torch_generator"] = torch.get_rng_state()
    storage.save_tensors(fresh / "state.safetensors", tensors)
    data = {"history": trainer.history, "generator": json.dumps(trainer.generator.bit_generator.state)}
    storage.save_json(fresh / "checkpoint.json", data)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def resume_from(folder: Path, trainer: Trainer) -> bool:
    """Put the trainer into the state of the checkpoint in `folder`, if there is one; True if there was."""
    if not (folder / "checkpoint.json").exists():
        # a kill between removing the old checkpoint and renaming the new one leaves the new one whole
        folder = folder.with_name(folder.name + ".new")
        if not (folder / "checkpoint.json").exists():
            return False
    data, tensors = (
        storage.load_json(folder / "checkpoint.json"),
        storage.load_tensors(folder / "state.safetensors"),
    )
    for prefix, module in (("story.", trainer.story), ("guide.", trainer.guide)):
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
    storage.restore_optimiser(trainer.optimiser, tensors)
    torch.set_rng_state(tensors["torch_generator"].to(torch.uint8))
    trainer.generator.bit_generator.state = json.loads(data["generator"])
    for name in HISTORY:
        trainer.history[name] = [float("nan") if x is None else x for x in data["history"][name]]
    return True
