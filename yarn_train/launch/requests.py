"""Stop requests that reach a launcher: it passes them on to its workers and outlives them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

from ..dist.stop import INTERRUPTED, SIGNALS, STOPPED, TOGETHER

HANDLED = (*SIGNALS, signal.SIGHUP)  # SIGHUP: the terminal is gone
LAST = 3  # the request at which workers are killed: neither of the two before reached them


class Forward:
    """While it is entered, signals go to the workers instead of ending this process; main thread only.

    Attributes:
        requested: the first signal; None as long as nobody asked.

    Args:
        workers: process ids of the workers that live now.
    """

    def __init__(self, workers: Callable[[], Iterable[int]]):
        self.requested: signal.Signals | None = None
        self._workers = workers
        self._told: set[int] = set()
        self._killed: set[int] = set()
        self._count, self._since = 0, 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Forward:
        for number in HANDLED:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN or number == signal.SIGTERM:  # ignored: a background job, nohup
                self._before[number] = before
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    @property
    def exit_code(self) -> int:
        """What the job exits with after a request."""
        return INTERRUPTED if self.requested == signal.SIGINT else STOPPED

    def explains(self, pid: int, code: int) -> bool:
        """Whether a worker that ended with `code` ended so for the request: before it listened, or killed from here."""
        if self.requested is None:
            return False
        return -code in SIGNALS or (code == -signal.SIGKILL and pid in self._killed)

    def kill(self, workers: Iterable[int]) -> None:
        """End workers that cannot hear the request and have nothing to save."""
        self._send(signal.SIGKILL, set(workers))

    def tell_new(self) -> None:
        """Pass the request on to workers that were started after it."""
        if self.requested is not None:
            self._send(self.requested, set(self._workers()) - self._told)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._since >= TOGETHER:
            self._count, self._since = self._count + 1, now
        if self.requested is None:
            name = signal.Signals(number).name
            os.write(2, f"{name}: saving after this step; a second signal stops at once\n".encode())
        passed = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        self.requested = self.requested or passed
        self._send(signal.SIGKILL if self._count >= LAST else passed, set(self._workers()))

    def _send(self, number: signal.Signals, workers: set[int]) -> None:
        self._told |= workers
        if number == signal.SIGKILL:
            self._killed |= workers
        for pid in workers:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Whether `pid` is a child of this process that has not ended; asking does not collect its exit code."""
    try:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: one that ended counts until the agent collects it
            os.kill(pid, 0)
            return True
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except (ChildProcessError, ProcessLookupError):
        return False
