"""Runs an iterator ahead of its consumer, on a thread: what a step needs is read while the step before it computes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
PATIENCE = 10.0  # seconds that closing waits for a read in progress; the thread is a daemon, so none can hang the exit


class Ahead(Iterator[T], Generic[T]):
    """The items of ``source``, in order, at most ``depth`` of them made and not yet taken; 0 makes them when asked.

    One thread alone runs the source, so neither its order nor its items depend on ``depth``. What it raises is raised
    where the item is taken that it could not make. It is a context manager: leaving it ends the thread.
    """

    def __init__(self, source: Iterator[T], depth: int):
        self._source = source
        self._made: SimpleQueue[Future[T]] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._closed = threading.Event()
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True) if depth else None
        if self._thread is not None:
            self._thread.start()

    def __next__(self) -> T:
        if self._end is None and self._closed.is_set():
            self._end = StopIteration()
        if self._end is not None:
            raise self._end
        try:
            return next(self._source) if self._thread is None else self._take()
        except BaseException as error:
            self._end = error
            raise

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, after the item it is making, and forget what was made; more calls do nothing."""
        self._closed.set()
        self._room.release()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        self._made = SimpleQueue()

    def _take(self) -> T:
        item = self._made.get().result()
        self._room.release()
        return item

    def _run(self) -> None:
        made = self._made  # close() replaces it
        while self._room.acquire() and not self._closed.is_set():
            future: Future[T] = Future()
            try:
                future.set_result(next(self._source))
            except BaseException as error:  # the end of the source too: the consumer must never wait for nothing
                future.set_exception(error)
            made.put(future)
            if future.exception() is not None:
                return
            del future  # else it would live on, taken, until there is room for the next
