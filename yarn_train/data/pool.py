"""Tokenising in worker processes: an ordered map over parts of documents, bounded in memory, without pauses.

The parent reads documents and cuts them; a long one becomes several tasks, many short ones become one. Ids come back in
order. There is nothing to wait for between documents: parts of the next ones are always under way.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

import numpy as np

from ..errors import DataError, problem
from .documents import Document
from .encode import CHUNK, Encoder, Recipe

IN_FLIGHT_PER_WORKER = 4  # tasks: enough that a worker never waits for the parent, few enough to bound memory
PER_PART = 512  # characters that a part counts for beside its own, so that a task has at most CHUNK / 512 parts

Payload = list[tuple[str, bool, bool]]  # of a task: (text, starts its document, ends it)
Answer = tuple[np.ndarray, list[int]]  # ids of all parts joined, and how many are each part's


@dataclass(frozen=True)
class _Part:
    """What the parent remembers of a part of a document while it is tokenised.

    Attributes:
        first, last: whether it starts and ends its document.
        error: why the document could not be read; then this is its only part.
    """

    document: Document
    first: bool
    last: bool
    error: DataError | None = None


@dataclass
class Pool:
    """Tokenises documents in ``workers`` processes of its own, which live as long as one call."""

    recipe: Recipe
    workers: int

    @cached_property
    def _encoder(self) -> Encoder:
        """Of this process, for the rare document that cannot be assembled from its parts."""
        return self.recipe.encoder()

    def tokenize(self, documents: Iterable[Document]) -> Iterator[tuple[Document, np.ndarray | DataError]]:
        """Every document in order with its ids [n] without BOS and EOS, or with the error of reading it.

        Raises:
            DataError: if a worker dies, or plain text produces the id of BOS or EOS.
        """
        ids: list[np.ndarray] = []
        for part, found in self._parts(documents):
            ids.append(found)
            if part.last:
                yield part.document, part.error or self._assembled(part, ids)
                ids = []

    def _assembled(self, last: _Part, ids: list[np.ndarray]) -> np.ndarray:
        """The ids of a document from those of its parts."""
        joined = ids[0] if len(ids) == 1 else np.concatenate(ids)
        if not last.first and self._encoder.has_marker(joined):
            return self._encoder.encode(last.document.read())  # it is to be cut inside of markers, all over
        return joined

    def _parts(self, documents: Iterable[Document]) -> Iterator[tuple[_Part, np.ndarray]]:
        # spawn: a forked child of a process with threads (torch, CUDA, NCCL) may deadlock
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.recipe,))
        tasks = _tasks(documents, self.recipe)
        flight: deque[tuple[list[_Part], Future[Answer]]] = deque()
        try:
            for parts, payload in islice(tasks, self.workers * IN_FLIGHT_PER_WORKER):
                flight.append((parts, pool.submit(_work, payload)))
            while flight:
                done, future = flight.popleft()
                ids, lengths = future.result()
                for parts, payload in islice(tasks, 1):
                    flight.append((parts, pool.submit(_work, payload)))
                edges = np.cumsum([0, *lengths]).tolist()
                for part, (start, end) in zip(done, pairwise(edges), strict=True):
                    yield part, ids[start:end]
        except BrokenProcessPool as error:
            fix = "a worker process died; try data.workers=1"
            raise DataError(problem("data.workers", self.workers, "as many as fit in memory", fix)) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tasks(documents: Iterable[Document], recipe: Recipe) -> Iterator[tuple[list[_Part], Payload]]:
    """Parts of documents, grouped until they hold about ``CHUNK`` characters."""
    parts: list[_Part] = []
    payload: Payload = []
    held = 0
    for document in documents:
        for part, text in _split(document, recipe):
            weight = len(text) + PER_PART
            if parts and held + weight > CHUNK + PER_PART:
                yield parts, payload
                parts, payload, held = [], [], 0
            parts.append(part)
            payload.append((text, part.first, part.last))
            held += weight
    if parts:
        yield parts, payload


def _split(document: Document, recipe: Recipe) -> Iterator[tuple[_Part, str]]:
    try:
        text = document.read()
    except DataError as error:  # kept until it is the document's turn, so that nothing before it is lost
        yield _Part(document, True, True, error), ""
        return
    for start, end in pairwise(recipe.cutting.edges(text, CHUNK)):
        yield _Part(document, start == 0, end == len(text)), text[start:end]


_worker_encoder: Encoder | None = None  # one per worker process, set by its initializer


def _start_worker(recipe: Recipe) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    # A parent that is killed cannot stop its workers, and they would wait for work for ever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker_encoder = recipe.encoder()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(payload: Payload) -> Answer:
    assert _worker_encoder is not None
    found = [
        _worker_encoder.encode(text) if first and last else _worker_encoder.encode_part(text, first)
        for text, first, last in payload
    ]
    return np.concatenate(found), [len(ids) for ids in found]
