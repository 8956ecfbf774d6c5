"""Who looks after a job, and how many do at once on a machine: by locked files, freed with their process."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..dist.failure import NO_LOCKS

INTERVAL = 0.1  # seconds between two looks


@contextmanager
def alone(folder: Path, name: str) -> Iterator[bool]:
    """Whether no other process looks after job `name`; while inside none can begin to."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder / f".{name}.lock")
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def turn(folder: Path, at_once: int, give_up: Callable[[], object]) -> Iterator[None]:
    """One of a machine's places: submitit_local starts all jobs of a sweep at once.

    Args:
        at_once: how many places there are; 0 where a scheduler knows its own.
        give_up: whether to wait no longer.
    """
    places = [folder / f".place_{platform.node()}_{number}.lock" for number in range(at_once)]
    descriptor = None
    while places and (descriptor := next((d for d in map(_locked, places) if d is not None), None)) is None:
        if give_up():
            break
        time.sleep(INTERVAL)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Descriptor of the file's lock, gone with this process; None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
    return descriptor
