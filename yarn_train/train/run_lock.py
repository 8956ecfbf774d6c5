"""Whose a run folder is: ours, somebody else's, or that of a run that goes on right now."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint.complete import complete_checkpoints
from ..dist import environment
from ..dist import others as heartbeats
from ..dist.failure import NO_LOCKS, existing, whose
from ..errors import CheckpointError, RunFolderTaken, StorageError

LOCK = ".lock"
PATIENCE = 10.0  # seconds; a killed worker with a model on its GPU needs some to be gone, and is started again at once
INTERVAL = 0.2
# before run.json: by a start, an evaluation alone, or the sweep that the run is a job of
ANYWAY = frozenset({LOCK, "commits.json", "logs", "heartbeat", "eval", "job.log"})
OF_A_RUN = re.compile(r"config\.yaml|run\.json|frequencies\.json|report|\d\d_[\w.-]+")
STAGE = re.compile(r"\d\d_[\w.-]+")
locked: list[tuple[int, Path]] = []  # descriptor and path of this process's lock file; at most one


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the run folder for this job, on rank 0; a second job that wants it is refused.

    The lock is the operating system's (POSIX, byte ranges): it is gone when the process is, however it ends, and is not
    inherited by processes that it starts. Over NFS it needs the server's lock service; where a file system has no
    locks, the job goes on without one.

    Raises:
        CheckpointError: the folder holds something that is no run, or another process works in it.
        StorageError: the folder cannot be written.
    """
    refuse_foreign(folder)
    if environment.rank() != 0:
        yield
        return
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        told = f"run folder {folder}: {error} ({whose(existing(folder))}); give it room and permission, or name another"
        raise StorageError(told) from error
    locked.append((descriptor, path))
    try:
        yield
    finally:
        locked.clear()
        if _nothing_began(folder):  # leave nothing behind
            shutil.rmtree(folder / heartbeats.FOLDER, ignore_errors=True)
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def gone() -> bool:
    """Whether this process locked a run folder that is no longer there (not collective; False on ranks but 0)."""
    return any(not _same_file(descriptor, path) for descriptor, path in locked)


def refuse_gone() -> None:
    """Before anything is written that would make the folder anew: a run that goes on in it would lose its beginning.

    Raises:
        StorageError: :func:`gone`.
    """
    if gone():
        path = locked[0][1]
        raise StorageError(
            f"the run folder is gone: {path} is no longer the file that this run locked, so somebody deleted, moved or "
            f"replaced {path.parent} while the run went on; nothing more is written there. Move it back, and the same "
            "command goes on from its newest checkpoint"
        )


def refuse_foreign(folder: Path) -> None:
    """Look at what is in the folder already; writes nothing.

    Raises:
        CheckpointError: it is not empty, and not a run folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"run folder {folder}: this is a file; name a folder with run.name or run.dir")
    if is_record(folder / "run.json"):
        return
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".incomplete"))
    ours = _is_ours(folder / "config.yaml") or _has_checkpoints(folder)
    strange = [name for name in names if name not in ANYWAY and not (ours and OF_A_RUN.fullmatch(name))]
    if strange:
        shown = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        raise CheckpointError(
            f"run folder {folder}: not empty and not a run folder (no run.json, but {shown}); nothing was written; "
            "name an empty or new folder with run.name or run.dir"
        )


def is_record(path: Path) -> bool:
    """Whether this is a run.json that can be read; one that a power cut emptied is not."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "versions" in record


def _is_ours(config: Path) -> bool:
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return False
    return isinstance(found, dict) and {"run", "rope", "train"} <= found.keys()


def _has_checkpoints(folder: Path) -> bool:
    """Whether a run could go on here although its own files are lost."""
    stages = [entry for entry in folder.iterdir() if STAGE.fullmatch(entry.name)]
    return any(complete_checkpoints(stage / "checkpoints") for stage in stages)


def _acquire(path: Path) -> int:
    """Descriptor of the locked file; waits ``PATIENCE`` for whoever has it."""
    deadline, told = time.monotonic() + PATIENCE, False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                return os.open(path, os.O_RDWR)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            if time.monotonic() >= deadline:
                raise RunFolderTaken(_taken(path.parent, holder)) from error
            if not told:
                line = f"waiting for {holder}, which has {path.parent}; refused in {PATIENCE:g} s if it still has it"
                print(line, file=sys.stderr, flush=True)
                told = True
            time.sleep(INTERVAL)
            continue
        if _same_file(descriptor, path):  # not one that its last holder has removed meanwhile
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_myself()).encode())
            return descriptor
        os.close(descriptor)


def _taken(folder: Path, holder: str) -> str:
    return (
        f"run folder {folder}: {holder} works in it, and two runs in one folder would destroy each other's "
        "checkpoints; wait until it has ended, end it, or choose another run.name; nothing was changed"
    )


def _myself() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _holder(descriptor: int) -> str:
    """Who holds the lock, as the file says, in words."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {said['pid']} on {said['host']} (since {said['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # storage that does not answer is not gone
        return True


def _nothing_began(folder: Path) -> bool:
    try:
        return {entry.name for entry in folder.iterdir()} <= {LOCK, heartbeats.FOLDER, "logs"}
    except OSError:
        return False
