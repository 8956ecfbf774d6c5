"""A worker whose launcher is gone ends: nobody would stop it, and it would keep its GPU. Never imports torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from . import environment

PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with_launcher() -> None:
    """Let the kernel kill this worker when the elastic agent above it dies, however it dies (Linux only).

    Killed, not asked to save: whoever kills a launcher may start the same command at once, and two sets of workers must
    not write one run folder. The newest complete checkpoint is where that command goes on.
    """
    if not environment.under_elastic_agent():
        return
    die_with(environment.launcher_pid())


def die_with(parent: int | None) -> None:
    """Let the kernel kill this process when the one that started it dies (Linux only).

    Args:
        parent: its id, if that is known: it may be dead already.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)
