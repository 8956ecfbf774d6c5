"""Sharded tensors through torch.distributed.checkpoint, and random-number states as safetensors (no pickle)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as torch_dcp
from safetensors.torch import load_file, save_file


def save(tensors: dict[str, Any], folder: Path) -> None:
    """Write every rank's shards into `folder`; collective."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about process groups that does not apply
        torch_dcp.save(tensors, checkpoint_id=str(folder))


def load(tensors: dict[str, Any], folder: Path) -> None:
    """Read into the given tensors in place, resharding from however many ranks wrote it; collective."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_dcp.load(tensors, checkpoint_id=str(folder))


def save_rng(folder: Path, rank: int) -> None:
    """Write this rank's random-number state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    save_file(state, str(folder / f"rng_{rank}.safetensors"))


def load_rng(folder: Path, rank: int) -> None:
    """Restore this rank's random-number state; a rank that did not exist when saving keeps its seeded one."""
    path = folder / f"rng_{rank}.safetensors"
    if not path.is_file():
        return
    state = load_file(str(path))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
