"""Process-group life cycle, ranks, seeds and devices; the only reader of environment variables in the package."""

from __future__ import annotations

import gc
import os
import random
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

INIT_TIMEOUT = timedelta(minutes=10)  # a dead rank must cost minutes, not the 11 days of an "infinite" timeout


@dataclass(frozen=True)
class Runtime:
    """Where this process stands: its rank among `world_size` processes and the device it computes on."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and prints."""
        return self.rank == 0


def world_size() -> int:
    """Number of processes the launcher started (1 without torchrun); known before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Number of processes the launcher started on this machine (1 without torchrun)."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """This process's global rank (0 without torchrun); known before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def under_torchrun() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def device() -> torch.device:
    """The device this process computes on: its local rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def announce() -> None:
    """Set what DeepSpeed reads where no launcher did: the local rank, the processes of this host, the device's type.

    Without them it asserts, counts NUMA nodes with a subprocess per reduction, or warns while it guesses the device.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("DS_ACCELERATOR", device().type)


def start() -> Runtime:
    """Join the process group (NCCL on GPUs, gloo on CPU); a lone process gets a group of one without any network.

    Called again in the same process (a multirun's next job) it returns the group that exists.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = device()
    cuda = place.type == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if under_torchrun():
            dist.init_process_group(backend, timeout=INIT_TIMEOUT)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if _torchrun_single_thread():
        torch.set_num_threads(max(1, usable_cores() // local_world_size()))
    return Runtime(dist.get_rank(), local_rank, dist.get_world_size(), place)


def _torchrun_single_thread() -> bool:
    """torchrun sets OMP_NUM_THREADS=1 when nobody chose a value; on CPU that would idle every other core."""
    return under_torchrun() and not torch.cuda.is_available() and os.environ.get("OMP_NUM_THREADS") == "1"


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_memory() -> None:
    """Collect what only cycles hold (sharded modules are full of them) and give cached device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def usable_cores() -> int:
    """CPU cores this process may run on (respects affinity masks and most containers)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device) with the same value on every rank."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
