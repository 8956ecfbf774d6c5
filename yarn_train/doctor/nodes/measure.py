"""What a rank measures of itself and with others, in a child that may be killed. Called by name from the rank."""

from __future__ import annotations

import platform
import shutil
import socket
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...dist import environment
from ...dist.runtime import device
from ...train.run_folder import git_hash, versions
from ..checks.compute import copy, matmul
from ..checks.disk import existing, tried
from ..checks.software import driver_version, installed
from ..traffic import Group, measure


def identity() -> dict[str, Any]:
    """What should be the same on all machines, and what this one is."""
    nccl = ".".join(str(n) for n in torch.cuda.nccl.version()) if torch.cuda.is_available() else None
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {"yarn-train": installed("yarn-train"), **versions(), "torch": torch.__version__, "nccl": nccl},
        "git": git_hash(),
        "driver": driver_version(),
        "environment": environment.communication(),
        "device": torch.cuda.get_device_name(device()) if torch.cuda.is_available() else "CPU",
    }


def alone(disk: str | None) -> dict[str, Any]:
    """FLOP/s, bytes/s of a copy in memory, and bytes/s of writing to `disk`."""
    place = device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    elif environment.single_thread_by_torchrun():
        torch.set_num_threads(max(1, environment.usable_cores() // environment.local_world_size()))
    found: dict[str, Any] = {"matmul": matmul(place, torch.bfloat16), "memory": copy(place)}
    if disk is not None:
        folder = existing(Path(disk).absolute())
        trial = tried(folder, shutil.disk_usage(folder).free, True)
        found |= {"write": trial.write, "disk_error": trial.error}
    return found


def together(host: str, port: int, name: str, rank: int, size: int, timeout: float) -> dict[str, float]:
    """All-reduce with the ranks that name the same group; see :func:`traffic.measure`."""
    store = dist.PrefixStore(f"doctor/group/{name}", _store(host, port, timeout))
    return measure(Group(store, rank, size, timeout), device())


@cache
def _store(host: str, port: int, timeout: float) -> dist.Store:
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
