"""Rows that are the same for every job of a sweep, those of weights nobody trained: computed once, read by the others.

A file ``<sweep>/shared/<digest>.json`` per model; the digest is of all that decides its numbers, the bytes of the
weights among them. One job computes it, under a file lock that the kernel takes back from whoever dies.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...dist.collectives import on_main
from ...dist.heartbeat import heartbeat
from ...errors import YarnTrainError
from ...model.weights import WeightFiles

FOLDER = "shared"
FORMAT = 2  # raised when the evaluation itself gives other numbers
INTERVAL = 0.5  # seconds between two looks at a lock
KEYS = {  # of each file's rows, without the model's names; the first two tell its rows apart
    "perplexity": ("window", "mode", "stride", "perplexity", "low", "high", "tokens", "documents", "score_from"),
    "perplexity_documents": ("window", "document", "nll", "tokens"),
    "positions": ("window", "begin", "end", "loss", "tokens", "low", "high"),
}
BLOCK = 2**24
Say = Callable[[str], None]
Rows = list[dict[str, Any]]
Found = dict[str, Rows]  # by file
Wanted = Mapping[str, Sequence[tuple[Any, Any]]]


@dataclass(frozen=True)
class Decisive:
    """What decides a model's rows.

    Attributes:
        weights: folder or hub id; its files' content counts, not its name.
        numbers: everything else, ready for JSON.
        wanted: of each file the first two keys of every row.
    """

    weights: str
    numbers: Mapping[str, Any]
    wanted: Wanted


@dataclass
class Claim:
    """A model's rows, or the right and duty to compute them.

    Attributes:
        rows: without the variant's names; None where this run computes them. The same on every rank.
    """

    rows: Found | None = None
    path: Path | None = None
    held: list[FileLock] = field(default_factory=list)

    def publish(self, rows: Found) -> None:
        """Let other jobs have them, on rank 0. Storage that fails costs the others time only."""
        if self.path is None:
            return
        kept = {name: [{k: row[k] for k in row if k in KEYS[name]} for row in rows[name]] for name in KEYS}
        _write(self.path, kept)


@contextmanager
def claimed(sweep: Path | None, decisive: Decisive | None, label: str, say: Say) -> Iterator[Claim]:
    """The rows of one model, as another job of the sweep left them, or to be computed inside. Every rank calls it.

    While another job computes them this waits, and computes them itself where that one dies.

    Args:
        sweep: the sweep's folder; None shares nothing.
        decisive: None shares nothing.
        label: of the model, for people.
        say: called with one line when there is something to wait for.
    """
    claim = Claim()
    if sweep is not None and decisive is not None:
        folder, wanted = sweep / FOLDER, decisive

        def look() -> Found | None:
            try:
                return _look(claim, folder, wanted, label, say)
            except (OSError, NotImplementedError, YarnTrainError) as error:  # a file system without locks among them
                say(f"evaluation of {label} is not shared with the sweep's other jobs: {error}")
                return None

        claim.rows = on_main(look)
    try:
        yield claim
    finally:
        for lock in claim.held:
            lock.release()


def _look(claim: Claim, folder: Path, decisive: Decisive, label: str, say: Say) -> Found | None:
    folder.mkdir(exist_ok=True)
    said = {"format": FORMAT, "weights": _weights_sha256(decisive.weights, folder, say), **decisive.numbers}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = folder / f"{digest}.json"
    found = _read(path, decisive.wanted)
    if found is not None:
        return found
    lock = FileLock(path.with_suffix(".lock"))
    _acquire(lock, f"another job of the sweep evaluates {label}; waiting for its result", say)
    found = _read(path, decisive.wanted)
    if found is not None:
        lock.release()
        return found
    claim.path = path
    claim.held.append(lock)
    return None


def _acquire(lock: FileLock, text: str, say: Say) -> None:
    told = False
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            if not told:
                say(text)
            told = True
            heartbeat.at(text)
            time.sleep(INTERVAL)


def _read(path: Path, wanted: Wanted) -> Found | None:
    """The rows of a file; None where there is none, or one that is torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = all(_sound(found[name], name, wanted[name]) for name in KEYS)
        return {name: list(found[name]) for name in KEYS} if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _sound(rows: Rows, name: str, wanted: Sequence[tuple[Any, Any]]) -> bool:
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    first, second = KEYS[name][:2]
    return (
        [(row[first], row[second]) for row in rows] == list(wanted)
        and all(row.keys() == set(KEYS[name]) for row in rows)
        and all(map(math.isfinite, numbers))
    )


def _write(path: Path, value: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)


def _weights_sha256(weights: str, folder: Path, say: Say) -> str:
    """Digest of the files' content, read once per sweep.

    A file counts as read while its place, size, inode and time of change are the same: unlike the time of modification,
    the kernel sets that one at every write, and no copy brings its own.
    """
    files = WeightFiles(weights).paths
    marks = [[str(p.resolve()), s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for p in files for s in [p.stat()]]
    name = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:32]
    cache = folder / f"weights_{name}.json"
    lock = FileLock(cache.with_suffix(".lock"))
    _acquire(lock, "another job of the sweep reads the base's weights to tell them from others; waiting for it", say)
    try:
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
            if isinstance(known, dict) and known.get("marks") == marks and isinstance(known.get("sha256"), str):
                return str(known["sha256"])
        except (OSError, ValueError, RecursionError):
            pass
        digest = hashlib.sha256()
        for path in files:
            heartbeat.at(f"read {path.name}")
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    heartbeat.at(f"read {path.name}")
        _write(cache, {"marks": marks, "sha256": digest.hexdigest()})
        return digest.hexdigest()
    finally:
        lock.release()
