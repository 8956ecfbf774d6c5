"""Tokenised documents on disk, in units that are complete or invisible: what makes preparation resumable and shared.

A unit is a run of consecutive documents of a source, about ``UNIT_BYTES`` of text. Whoever tokenises it, on whichever
machine, writes the same bytes. Its ids are written aside and renamed, then its description is; a unit without a
description does not exist. A process that works on a unit holds a file lock, which the operating system releases when
the process dies, however it dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..errors import DataError, problem

UNIT_BYTES = 8 * 2**20  # text per unit: what a killed process loses of each unit in flight
PER_DOCUMENT = 512
SKIPPED = -1  # length of a document that has no text
JOB = "job.json"
OURS = re.compile(r"unit_\d{6}\.|job\.json")
WRITE_BYTES = 2**20
OPEN_UNITS = 128  # a memory map holds a file descriptor, and 1024 of them is a common limit


def plan_units(sizes: np.ndarray, unit_bytes: int | None = None) -> list[range]:
    """Consecutive documents that begin in the same ``unit_bytes`` of all texts end to end.

    Every document counts for ``PER_DOCUMENT`` bytes more than its text, or a million empty ones would be one unit.

    Args:
        sizes: bytes per document, int64 [n].
        unit_bytes: None is ``UNIT_BYTES``.
    """
    weights = sizes + PER_DOCUMENT
    begins = np.cumsum(weights) - weights
    units = begins // (unit_bytes or UNIT_BYTES)
    edges = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(sizes)]
    return [range(a, b) for a, b in pairwise(edges) if a < b]


class Spool:
    """The units of one preparation, in a folder that several processes and machines may share."""

    def __init__(self, folder: Path, units: Sequence[range], dtype: np.dtype, job: dict[str, Any]):
        """Make the folder, or go on with one of the same job.

        Args:
            units: document numbers of each unit.
            dtype: of the ids.
            job: JSON values that determine the ids.

        Raises:
            DataError: if the folder holds units of another job.
        """
        self.folder, self.units, self.dtype = folder, units, dtype
        self._seen: set[int] = set()  # units known to be complete: a description is never taken back
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {**job, "units": len(units)}
        found = _read(folder / JOB)
        if found is None:
            _refuse_foreign(folder)
            _write(folder / JOB, json.dumps(wanted, sort_keys=True).encode())
        elif found != json.loads(json.dumps(wanted)):
            what = "unfinished work of this job"
            fix = "it was begun with other data or options; delete it to begin anew"
            raise DataError(problem("data.cache", str(folder), what, fix))

    def done(self, number: int) -> bool:
        """Whether a unit is complete."""
        if number not in self._seen and _read(self._description(number)) is not None:
            self._seen.add(number)
        return number in self._seen

    def claim(self, number: int) -> FileLock | None:
        """The lock of a unit that is to be made by this process; None if it is complete, or another's."""
        lock = FileLock(self.folder / f"unit_{number:06d}.lock")
        try:
            lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # another's, or the whole job was finished and cleared away
            return None
        if self.done(number):
            lock.release()
            return None
        return lock

    def write(self, number: int, documents: Sequence[np.ndarray | None]) -> None:
        """Complete a unit.

        Args:
            documents: ids of each of its documents, [n_i]; None for one that was skipped.
        """
        file = self._ids(number)
        aside = file.with_suffix(unique_suffix())
        digest = hashlib.sha256()
        with aside.open("wb") as out:
            for block in _blocks(documents):
                assert block.dtype == self.dtype, f"{block.dtype} ids in a spool of {self.dtype}"
                digest.update(block.data)
                out.write(block.data)
            os.fsync(out.fileno())  # before its description exists
        os.replace(aside, file)
        lengths = [SKIPPED if ids is None else len(ids) for ids in documents]
        described = {"bytes": file.stat().st_size, "sha256": digest.hexdigest(), "lengths": lengths}
        _write(self._description(number), json.dumps(described).encode())

    def lengths(self, number: int) -> np.ndarray:
        """Tokens of each document of a complete unit, int64; ``SKIPPED`` for one that was skipped."""
        described = _read(self._description(number))
        assert described is not None
        return np.array(described["lengths"], dtype=np.int64)

    def intact(self, number: int) -> bool:
        """Whether a unit's ids are what its description says. One that is not is forgotten, and is to be made again."""
        described, file = _read(self._description(number)), self._ids(number)
        if described is not None and file.is_file() and file.stat().st_size == described["bytes"]:
            with file.open("rb") as ids:
                if hashlib.file_digest(ids, "sha256").hexdigest() == described["sha256"]:
                    return True
        self._description(number).unlink(missing_ok=True)
        self._seen.discard(number)
        return False

    def reader(self) -> Callable[[int], np.ndarray]:
        """A function from a unit's number to its ids [tokens], memory-mapped; few are open at a time."""

        @lru_cache(maxsize=OPEN_UNITS)
        def ids(number: int) -> np.ndarray:
            file = self._ids(number)
            return np.memmap(file, self.dtype, "r") if file.stat().st_size else np.empty(0, self.dtype)

        return ids

    def _ids(self, number: int) -> Path:
        return self.folder / f"unit_{number:06d}.ids"

    def _description(self, number: int) -> Path:
        return self.folder / f"unit_{number:06d}.json"


def _blocks(documents: Sequence[np.ndarray | None]) -> Iterator[np.ndarray]:
    """Documents end to end in blocks large enough to be written one by one."""
    waiting: list[np.ndarray] = []
    size = 0
    for ids in documents:
        if ids is not None:
            waiting.append(ids)
            size += ids.nbytes
        if size >= WRITE_BYTES:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def unique_suffix() -> str:
    """For files being written, on any machine that shares the folder."""
    return f".{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}.incomplete"


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is none, or only what a power failure left of it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(file: Path, content: bytes) -> None:
    """Write aside, then rename."""
    aside = file.with_name(f"{file.name}{unique_suffix()}")
    aside.write_bytes(content)
    with suppress(FileNotFoundError):
        os.replace(aside, file)


def _refuse_foreign(folder: Path) -> None:
    """Such a folder is removed when its work is done, so it must not hold what somebody else put there.

    Raises:
        DataError: it holds files without the description of a job.
    """
    strange = [entry.name for entry in folder.iterdir() if not OURS.match(entry.name)]
    if strange:
        got, fix = f"{folder}, which holds {strange[0]}", "move it away, or name another data.cache"
        raise DataError(problem("data.cache", got, "no folder of that name, or unfinished work", fix))
