"""What ranks agree on about checkpoints."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from ..dist.collectives import PATIENCE, from_all, from_main
from ..dist.failure import explained
from ..dist.runtime import Runtime
from ..errors import StorageError, YarnTrainError
from .complete import wait_for

SHARED_WITHIN = 60.0  # seconds until one machine sees what another wrote: network storage remembers what was not there
SEEN_WITHIN = 5.0  # likewise of what was written by an earlier start
Result = TypeVar("Result")
Exchange = Callable[[Any], list[Any]]


def exchange_apart(world_size: int) -> Exchange:
    """What gives every rank's value to every rank, for one thread beside training; making it is collective.

    Over a group of its own, on gloo, and patient: ranks may read or write for hours.
    """
    if world_size == 1:
        return lambda value: [value]
    group = _group(dist.group.WORLD)

    def exchange(value: Any) -> list[Any]:
        box: list[Any] = [None] * world_size
        dist.all_gather_object(box, value, group=group)
        return box

    return exchange


@lru_cache(maxsize=1)
def _group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """One for all stages of a process: they save one after the other."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def agreed(work: Callable[[], Result], exchange: Exchange) -> Result:
    """What `work` gives this rank, once it succeeded on all; collective.

    Raises:
        YarnTrainError: the first rank's that raised one, or an error of the storage; on every rank.
    """
    result, told = None, None
    try:
        result = work()
    except Exception as error:
        told = explained(error)
        if not isinstance(told, YarnTrainError):
            raise  # a bug: the others lose this rank, and say so
    failures = [failure for failure in exchange(told) if failure is not None]
    if failures:
        raise failures[0]
    return result  # type: ignore[return-value]


def refuse_unshared(folder: Path, runtime: Runtime) -> None:
    """Check that all ranks see one and the same `folder`, which rank 0 makes; collective.

    Raises:
        StorageError: some do not, or it cannot be written.
    """
    name, failure = f".seen_{secrets.token_hex(8)}", None
    if runtime.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(".seen_*"):
                old.unlink()
            (folder / name).touch()
        except OSError as error:
            failure = f"{error.filename or folder} cannot be written: {error.strerror}; checkpoints need it"
    name, failure = from_main((name, failure))
    if failure is not None:
        raise StorageError(failure)
    seen = from_all(wait_for(folder / name, time.monotonic() + SHARED_WITHIN))
    blind = [rank for rank, sees in enumerate(seen) if not sees]
    if runtime.is_main:
        with suppress(OSError):
            (folder / name).unlink()
    if blind:
        raise StorageError(
            f"{len(blind)} of {runtime.world_size} ranks (the first is rank {blind[0]}) do not see what rank 0 wrote "
            f"to {folder}: run.dir must be on storage that all machines share"
        )
