"""Checks that misbehave, for the runner's tests; called by name in children."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from yarn_train.doctor.finding import OK, Finding


def fine(name: str = "fine") -> list[Finding]:
    return [Finding(OK, name, str(os.getpid()))]


def hangs(note: str) -> list[Finding]:
    """It and a process it started sleep for ever."""
    sleeper = subprocess.Popen(["sleep", "300"])
    with open(note, "w") as out:
        out.write(f"{os.getpid()} {sleeper.pid}")
    time.sleep(300)
    return []


def computes() -> list[Finding]:
    """Long, as anything does on a machine that is busy enough."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        pass
    return []


def crashes() -> list[Finding]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def raises() -> list[Finding]:
    raise RuntimeError("no such device\nsecond line")
