"""Work in a process of its own that can be given up: what hangs or crashes there never reaches the doctor.

Children are forked from a server that has imported torch once and never touched a GPU, so that one starts in
milliseconds. This module itself never imports torch.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from .activity import Activity, activity


class ChildError(Exception):
    """The work gave no result; the message says how it ended."""


class Hung(ChildError):
    """It took longer than its limit and was killed.

    Attributes:
        seen: what it was doing until then.
    """

    def __init__(self, limit: float, seen: Activity):
        super().__init__(f"no answer within {limit:.0f} s")
        self.seen = seen


class Child:
    """A process that computes what it is asked for, one call after another."""

    def __init__(self, preloaded: Sequence[str]) -> None:
        """Start it; the first one of a process starts the server, which imports the modules named."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preloaded))
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=False)
        self._process.start()
        theirs.close()

    def call(self, function: str, limit: float, /, **arguments: Any) -> Any:
        """The result of a function, named ``module:function``.

        Args:
            limit: seconds; afterwards the child is dead.

        Raises:
            Hung: it took longer.
            ChildError: it raised an exception, or the process died.
        """
        try:
            self._ours.send((function, arguments))
            if not self._ours.poll(max(0.0, limit)):
                seen = activity(self._process.pid or 0)
                self.kill()
                raise Hung(limit, seen)
            done, result = self._ours.recv()
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            raise ChildError(_death(self._process.exitcode)) from error
        if not done:
            raise ChildError(result)
        return result

    def kill(self) -> None:
        """End it with everything it started."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._ours.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"


def serve(requests: Connection) -> None:
    """The child's main loop; ends when the doctor does."""
    os.setsid()  # so that a kill reaches what is started from here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, arguments = requests.recv()
        except EOFError:
            return
        try:
            answer = True, call(function, arguments)
        except Exception as error:
            text = str(error).strip().splitlines()
            answer = False, f"{type(error).__name__}: {text[0] if text else ''}"
        requests.send(answer)


def call(function: str, arguments: dict[str, Any]) -> Any:
    """Import and call ``module:function``."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)
