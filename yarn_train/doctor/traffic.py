"""All-reduce between a few ranks, measured within seconds on a link of any speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

FIRST = 2**16  # bytes of the first message; it grows until one all-reduce takes long enough to be measured
GROWTH = 4
LONG = 0.1  # seconds
MOST = {"cuda": 2**28, "cpu": 2**24}  # bytes
PINGS = 20
REPEATED = 3


@dataclass(frozen=True)
class Group:
    """Ranks that meet through a store: this one's number, their count, and seconds that any call may take."""

    store: dist.Store
    rank: int
    size: int
    timeout: float

    @contextmanager
    def joined(self, place: torch.device) -> Iterator[None]:
        """Inside, they are the default process group, which exists for this only."""
        cuda = place.type == "cuda"
        if cuda:
            torch.cuda.set_device(place)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.timeout),
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


def measure(group: Group, place: torch.device) -> dict[str, float]:
    """Bus bandwidth in bytes/s (nccl-tests' definition) and latency in seconds of an all-reduce; collective.

    Raises:
        RuntimeError: another rank did not answer in time; torch's own kinds below it.
    """
    with group.joined(place):
        tiny = torch.zeros(1, device=place)
        _seconds(tiny)  # connections are made here
        latency = statistics.median(_seconds(tiny) for _ in range(PINGS))
        size, taken = FIRST, 0.0
        while taken < LONG and size <= MOST[place.type]:
            message = torch.zeros(size // 4, device=place)
            _seconds(message)
            taken, last = _slowest(min(_seconds(message) for _ in range(REPEATED)), place), size
            size *= GROWTH
        return {"bus": last / taken * 2 * (group.size - 1) / group.size, "latency": latency, "bytes": float(last)}


def _seconds(message: torch.Tensor) -> float:
    begin = time.perf_counter()
    dist.all_reduce(message)
    if message.is_cuda:
        torch.cuda.synchronize(message.device)
    return time.perf_counter() - begin


def _slowest(seconds: float, place: torch.device) -> float:
    """Of all ranks, so that all decide alike whether to go on."""
    value = torch.tensor(seconds, dtype=torch.float64, device=place)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value.item())
