"""How far a preparation is: counted in documents and bytes of text, drawn with rates and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..console.work import Work


@dataclass(frozen=True)
class Progress:
    """Documents and bytes of text done and in all, tokens made of those done by this process."""

    documents: int
    documents_total: int
    bytes: int
    bytes_total: int
    tokens: int


Update = Callable[[Progress], None]


class Counter:
    """Adds up what a process has done, and tells ``update`` about it."""

    def __init__(self, update: Update | None = None):
        self._update = update
        self._sizes = np.empty(0, dtype=np.int64)
        self._total = self._total_bytes = self._done = self._bytes = self._tokens = 0

    def begin(self, sizes: np.ndarray, units: Sequence[range], done: Sequence[bool]) -> None:
        """Start with the units that are ``done``.

        Args:
            sizes: bytes per document, int64 [n].
            units: the documents this process is responsible for.
        """
        self._sizes = sizes
        self._total = sum(map(len, units))
        self._total_bytes = sum(int(sizes[u.start : u.stop].sum()) for u in units)
        ready = [unit for unit, complete in zip(units, done, strict=True) if complete]
        self._done = sum(map(len, ready))
        self._bytes = sum(int(sizes[u.start : u.stop].sum()) for u in ready)
        self._tell()

    def add(self, document: int, tokens: int) -> None:
        """One document more."""
        self._done += 1
        self._bytes += int(self._sizes[document])
        self._tokens += tokens
        self._tell()

    def _tell(self) -> None:
        if self._update is not None:
            self._update(Progress(self._done, self._total, self._bytes, self._total_bytes, self._tokens))


@contextmanager
def progress_bar(label: str) -> Iterator[Update]:
    """Yields an ``update`` that shows MB/s, documents/s and the time left; nothing is shown until it is called."""
    work: Work | None = None
    started, first = 0.0, 0

    def update(now: Progress) -> None:
        nonlocal work, started, first
        if work is None or now.bytes_total != work.total:  # the next source of a mixture gets a line of its own
            if work is not None:
                work.close()
            started, first = time.perf_counter(), now.documents
            work = Work(label, now.bytes_total, "B", now.bytes)
        rate = (now.documents - first) / max(time.perf_counter() - started, 1e-9)
        counts = f"{now.documents}/{now.documents_total} documents, {rate:.1f}/s, {now.tokens / 1e6:.1f}M tokens"
        work.reach(now.bytes, counts)

    try:
        yield update
    finally:
        if work is not None:
            work.close()
