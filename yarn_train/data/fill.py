"""Tokenise the documents of a job into its spool, alone or together with other processes and machines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
from filelock import FileLock

from .documents import Document
from .job import Job
from .progress import Counter
from .spool import Spool
from .tokenize import tokenize_documents

POLL_SECONDS = 0.2  # between two looks at units that other processes hold


def fill(job: Job, spool: Spool, mine: Sequence[int], workers: int, counter: Counter, over: Callable[[], bool]) -> None:
    """Complete the units ``mine``.

    Units that another process holds are left to it; one whose process died is taken over.

    Args:
        workers: processes that tokenise; 0 is one per core.
        counter: told about every document.
        over: whether the result of the whole job is there already, made by another process.
    """
    counter.begin(job.listed.sizes(), [spool.units[u] for u in mine], [spool.done(u) for u in mine])
    while missing := [number for number in mine if not spool.done(number)]:
        if over():
            return
        if not _one_pass(job, spool, missing, workers, counter):
            time.sleep(POLL_SECONDS)


@dataclass
class _Claimed:
    """A unit that this process holds, and the ids of its first documents."""

    number: int
    lock: FileLock
    documents: range
    ids: list[np.ndarray | None] = field(default_factory=list)


def _one_pass(job: Job, spool: Spool, missing: Sequence[int], workers: int, counter: Counter) -> bool:
    """Complete every missing unit that nobody holds; whether there was one."""
    claimed: deque[_Claimed] = deque()

    def documents() -> Iterator[Document]:
        for number in missing:
            lock = spool.claim(number)
            if lock is not None:
                claimed.append(_Claimed(number, lock, spool.units[number]))
                yield from (job.listed[i] for i in spool.units[number])

    def add(ids: np.ndarray | None) -> None:
        """The next document of the oldest claimed unit."""
        unit = claimed[0]
        counter.add(unit.documents[len(unit.ids)], 0 if ids is None else len(ids))
        unit.ids.append(ids)
        if len(unit.ids) == len(unit.documents):
            spool.write(unit.number, unit.ids)
            unit.lock.release()
            claimed.popleft()

    def expected() -> str:
        unit = claimed[0]
        return job.listed.name(unit.documents[len(unit.ids)])

    wanted = documents()
    first = list(islice(wanted, 1))  # worker processes are not started for nothing
    try:
        if first:
            for name, ids in tokenize_documents(chain(first, wanted), job.tokenizer_path, workers):
                while expected() != name:  # documents without text are left out of the results
                    add(None)
                add(ids)
            while claimed:
                add(None)
    finally:
        for unit in claimed:
            unit.lock.release()
    return bool(first)
