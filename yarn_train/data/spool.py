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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..errors import DataError, problem

UNIT_BYTES = 8 * 2**20  # text per unit: what a killed process loses of each unit in flight
SKIPPED = -1  # length of a document that has no text
JOB = "job.json"
WRITE_BYTES = 2**20


def plan_units(sizes: np.ndarray, unit_bytes: int | None = None) -> list[range]:
    """Consecutive documents whose texts begin in the same ``unit_bytes`` of all texts end to end.

    Args:
        sizes: bytes per document, int64 [n].
        unit_bytes: None is ``UNIT_BYTES``.
    """
    begins = np.cumsum(sizes) - sizes
    units = begins // (unit_bytes or UNIT_BYTES)
    edges = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(sizes)]
    return [range(a, b) for a, b in pairwise(edges) if a < b]


@dataclass(frozen=True)
class Unit:
    """The ids of a unit's documents end to end, memory-mapped, and the tokens of each (``SKIPPED`` for none)."""

    ids: np.ndarray
    lengths: np.ndarray


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
        folder.mkdir(parents=True, exist_ok=True)
        wanted = json.dumps({**job, "units": len(units)}, sort_keys=True)
        found = folder / JOB
        if not found.exists():
            _write(found, wanted.encode())
        if found.read_text(encoding="utf-8") != wanted:
            what = "unfinished work of this job"
            fix = "it was begun with other data or options; delete it to begin anew"
            raise DataError(problem("data.cache", str(folder), what, fix))

    def done(self, number: int) -> bool:
        """Whether a unit is complete."""
        return self._description(number).is_file()

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
        aside = file.with_suffix(f".{os.getpid()}.incomplete")
        digest = hashlib.sha256()
        with aside.open("wb") as out:
            for block in _blocks(documents):
                assert block.dtype == self.dtype, f"{block.dtype} ids in a spool of {self.dtype}"
                digest.update(block.data)
                out.write(block.data)
        os.replace(aside, file)
        lengths = [SKIPPED if ids is None else len(ids) for ids in documents]
        described = {"bytes": file.stat().st_size, "sha256": digest.hexdigest(), "lengths": lengths}
        _write(self._description(number), json.dumps(described).encode())

    def read(self, number: int) -> Unit:
        """A complete unit, checked against its description.

        Raises:
            DataError: if its files are not what was written.
        """
        described = json.loads(self._description(number).read_text(encoding="utf-8"))
        file = self._ids(number)
        right = file.is_file() and file.stat().st_size == described["bytes"]
        ids = np.memmap(file, self.dtype, "r") if right and described["bytes"] else np.empty(0, self.dtype)
        if not right or hashlib.sha256(ids.data).hexdigest() != described["sha256"]:
            fix = f"delete {self._description(number)} and run data/prepare.py again; the other units are kept"
            raise DataError(problem("data.cache", str(file), "the bytes that its description names", fix))
        return Unit(ids, np.array(described["lengths"], dtype=np.int64))

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


def _write(file: Path, content: bytes) -> None:
    """Write aside, then rename."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.incomplete")
    aside.write_bytes(content)
    with suppress(FileNotFoundError):
        os.replace(aside, file)
