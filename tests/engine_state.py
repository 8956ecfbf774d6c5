"""What an engine holds, whole: to tell whether two states are the same bit for bit, however each is cut."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from yarn_train.checkpoint.fragments import Fragment
from yarn_train.checkpoint.manager import CheckpointManager


def whole(value: Any, replicated: bool) -> Tensor:
    """A tensor of a state_dict(), flattened, on every rank; collective unless every rank holds all of it."""
    if isinstance(value, DTensor):
        return value.full_tensor().flatten()
    if not isinstance(value, Fragment):
        return value.flatten()
    if replicated:
        return value.local
    found = torch.zeros(value.numel, dtype=value.local.dtype)
    found[value.start : value.start + value.local.numel()] = value.local
    dist.all_reduce(found.view(torch.int32))  # of disjoint pieces, as integers: a sum of floats would lose -0.0
    return found


def hashes(engine: Any) -> dict[str, str]:
    """A hash of every tensor's bytes, by name; collective."""
    state = engine.state_dict()
    tensors = {f"{key}.{name}": t for key in ("weights", "exp_avg", "exp_avg_sq") for name, t in state[key].items()}
    tensors["step"] = state["step"]
    replicated = getattr(engine, "stage", None) == 0
    return {
        name: hashlib.sha256(whole(t, replicated).numpy().tobytes()).hexdigest()[:16] for name, t in tensors.items()
    }


def watch(patch: pytest.MonkeyPatch) -> dict[str, dict[int, dict[str, str]]]:
    """Note the state at every save and after every load: {"saved" | "loaded": {step: hashes}}."""
    seen: dict[str, dict[int, dict[str, str]]] = {"saved": {}, "loaded": {}}
    save, load = CheckpointManager.save, CheckpointManager.load

    def saving(manager: Any, engine: Any, state: Any, *rest: Any) -> Any:
        seen["saved"][state.step] = hashes(engine)
        return save(manager, engine, state, *rest)

    def loading(manager: Any, engine: Any, checkpoint: Any) -> Any:
        state = load(manager, engine, checkpoint)
        seen["loaded"][state.step] = hashes(engine)
        return state

    patch.setattr(CheckpointManager, "save", saving)
    patch.setattr(CheckpointManager, "load", loading)
    return seen
