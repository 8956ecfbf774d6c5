"""Process-group life cycle, ranks, seeds and devices."""

from __future__ import annotations

import gc
import random
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from . import environment
from .failure import WHILE_MEETING, explained

STORE_ANSWERS = 5.0  # seconds that one try to reach the store takes at most
TIMEOUT = 600.0  # seconds; a dead rank must cost minutes, not the 11 days of an "infinite" timeout


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


def device() -> torch.device:
    """The device this process computes on: its local rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", environment.local_rank())
    return torch.device("cpu")


def start(timeout: float = TIMEOUT) -> Runtime:
    """Join the process group (NCCL on GPUs, gloo on CPU); a lone process gets a group of one without any network.

    Called again in the same process (a multirun's next job) it returns the group that exists.

    Args:
        timeout: seconds that a collective waits for the other ranks.

    Raises:
        RanksLost: not all of them came in that time.
    """
    local_rank = environment.local_rank()
    place = device()
    cuda = place.type == "cuda"
    if cuda:
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if environment.under_launcher():
            try:
                _join(backend, timedelta(seconds=timeout))
            except Exception as error:
                raise explained(error, WHILE_MEETING) from error
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not cuda and environment.single_thread_by_torchrun():
        torch.set_num_threads(max(1, environment.usable_cores() // environment.local_world_size()))
    return Runtime(dist.get_rank(), local_rank, dist.get_world_size(), place)


def _join(backend: str, timeout: timedelta) -> None:
    """Meet the other ranks where the launcher says.

    Workers that the agent starts again meet in the store of those that failed, and would connect to their addresses:
    they get a part of it that is theirs alone.
    """
    _wait_for_store(timeout.total_seconds())
    attempt, served = environment.restart(), environment.store_of_agent()
    if not (attempt and served):
        dist.init_process_group(backend, timeout=timeout)
        return
    host, port, _ = environment.meeting_point()
    rank, world_size = environment.rank(), environment.world_size()
    store = dist.TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"yarn_train/restart{attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def _wait_for_store(timeout: float) -> None:
    """Wait until somebody serves the store that ranks meet in.

    torch waits too, but twice as long and more: it doubles its pauses, and the last one counts in full.

    Raises:
        DistNetworkError: nobody did in `timeout` seconds.
    """
    host, port, served = environment.meeting_point()
    if environment.rank() == 0 and not served:
        return  # it is this process that will
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=STORE_ANSWERS).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise dist.DistNetworkError(f"no answer from {host}:{port} in {timeout:g} s: {error}") from error
        time.sleep(0.1)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_memory() -> None:
    """Collect what only cycles hold (sharded modules are full of them) and give cached device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device) with the same value on every rank."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
