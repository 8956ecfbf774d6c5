"""One of two ranks that save and load together; what it met goes to OUT/<rank>.json.

Run under torchrun: checkpoint_ranks.py OUT
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import FakeEngine, failing, names, state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from yarn_train.checkpoint import ranks, safetensors_file
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.config import CheckpointConfig
from yarn_train.dist import runtime as dist_runtime
from yarn_train.errors import YarnTrainError

RUNTIME = dist_runtime.start(60)
SAID: list[str] = []


def manager(folder: Path, async_save: bool = True) -> CheckpointManager:
    cfg = CheckpointConfig(keep=2, async_save=async_save)
    return CheckpointManager(folder, cfg, RUNTIME, SAID.append)


def save(checkpoints: CheckpointManager, step: int, engine: Any) -> None:
    checkpoints.save(engine, state(step))
    checkpoints.finish()


def message(call: Callable[[], object]) -> str:
    """What a user would read."""
    try:
        call()
    except YarnTrainError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def rows(value: float) -> FakeEngine:
    """5 rows cut over the ranks (3 and 2), and a large tensor that both hold."""
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(20.0).view(5, 4) * value
    large = torch.arange(600_000, dtype=torch.float32) * value
    return FakeEngine(
        value, rows=distribute_tensor(whole, mesh, [Shard(0)]), large=distribute_tensor(large, mesh, [Replicate()])
    )


def failures(folder: Path, async_save: bool) -> dict[str, Any]:
    """Rank 1's storage is full in the second save."""
    checkpoints = manager(folder, async_save)
    save(checkpoints, 1, FakeEngine(1.0))
    with pytest.MonkeyPatch.context() as patch:
        if RUNTIME.rank == 1:
            failing(patch, "rank_00001.safetensors", errno.ENOSPC)
        found = {"full": message(lambda: save(checkpoints, 2, FakeEngine(2.0)))}
    torch.distributed.barrier()
    found["after"] = names(checkpoints)
    save(checkpoints, 2, FakeEngine(3.0))
    engine = FakeEngine(0.0)
    checkpoints.load(engine, checkpoints.newest())
    return {**found, "loaded": engine.weight[0].item(), "next": names(checkpoints)}


def cut(folder: Path) -> dict[str, Any]:
    """DTensors of two ranks; then one file of the second checkpoint is damaged."""
    checkpoints = manager(folder)
    save(checkpoints, 1, rows(1.0))
    save(checkpoints, 2, rows(2.0))
    engine = rows(0.0)
    checkpoints.load(engine, checkpoints.newest())
    found: dict[str, Any] = {"second": whole(engine)}
    found["sizes"] = [f.stat().st_size for f in sorted(checkpoints.newest().glob("rank_*"))]
    if RUNTIME.rank == 0:
        path = folder / "step_00000002/rank_00001.safetensors"
        path.write_bytes(path.read_bytes()[:-2] + b"??")
    torch.distributed.barrier()
    with pytest.MonkeyPatch.context() as patch:
        impatient = watch_default_group(patch)
        checkpoints.load(engine, checkpoints.newest())
    found |= {"impatient": impatient, "groups": ranks._group.cache_info().misses}
    other = FakeEngine(0.0, more=torch.zeros(3)) if RUNTIME.rank else FakeEngine(0.0)
    found |= {"first": whole(engine), "names": names(checkpoints)}
    found["refused"] = message(lambda: checkpoints.load(other, folder / "step_00000001"))
    return found


def watch_default_group(patch: pytest.MonkeyPatch) -> list[str]:
    """Names of exchanges of objects over the group with the short timeout, from here on."""
    seen: list[str] = []
    for name in ("all_gather_object", "broadcast_object_list"):
        call = getattr(torch.distributed, name)

        def watched(*args: Any, name: str = name, call: Any = call, **kwargs: Any) -> Any:
            seen.extend([] if kwargs.get("group") else [name])
            return call(*args, **kwargs)

        patch.setattr(torch.distributed, name, watched)
    return seen


def whole(engine: FakeEngine) -> list[float]:
    tensors = [engine.more["rows"], engine.more["large"]]
    return [float(t.full_tensor().sum()) for t in tensors if isinstance(t, DTensor)]


def apart(out: Path) -> dict[str, Any]:
    """Ranks whose folder has the same name and is not the same."""
    ranks.SHARED_WITHIN = 0.5
    folder = out / f"machine{RUNTIME.rank}"
    found = {"start": message(lambda: manager(folder))}
    checkpoints = manager(out / "shared")
    checkpoints.folder = folder
    found["save"] = message(lambda: save(checkpoints, 1, FakeEngine(1.0)))
    return found


def leave(folder: Path) -> None:
    """Go while rank 1 still writes and rank 0 waits for it."""
    checkpoints = manager(folder)
    write = safetensors_file.write

    def slow(path: Path, parts: Any) -> Any:
        if RUNTIME.rank == 1 and path.name.startswith("rank"):
            time.sleep(100)
        return write(path, parts)

    safetensors_file.write = slow
    checkpoints.save(FakeEngine(1.0), state(1))
    time.sleep(0.5)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found = {
        "async": failures(out / "async", True),
        "sync": failures(out / "sync", False),
        "cut": cut(out / "cut"),
        "apart": apart(out),
        "said": SAID,
    }
    (out / f"{RUNTIME.rank}.json").write_text(json.dumps(found))
    leave(out / "left")
    (out / f"{RUNTIME.rank}.left").write_text(str(time.time()))
    os._exit(0)  # a thread still waits inside gloo, which may abort a process that ends in the usual way
