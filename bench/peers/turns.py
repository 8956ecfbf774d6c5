"""A trainer in a process of its own takes a step when it is told to, so that trainers can be measured in turns.

What slows a shared machine down for a while then slows all of them down. The process's stdout carries one JSON object
per line; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench.measure import peak_bytes


class Turns:
    """The side of the trainer: ``wait`` before a step, ``done`` after it."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._began = 0.0

    def wait(self) -> bool:
        """Say that a step can begin and wait for its turn; False when there are no more."""
        self._say({"ready": True})
        word = sys.stdin.readline().strip()
        self._began = time.perf_counter()
        return word == "step"

    def done(self, loss: float) -> None:
        """The step is over, its optimizer's update too."""
        seconds = time.perf_counter() - self._began
        self._say({"seconds": seconds, "loss": loss, "peak_bytes": peak_bytes()})

    def _say(self, row: dict[str, Any]) -> None:
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()


class Peer:
    """The other side: one trainer's process. Leaving the context ends it."""

    def __init__(self, name: str, case: Path, threads: int):
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self._ready = False
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        command = [sys.executable, "-m", "bench.peers.worker", name, str(case)]
        self._log = (case.parent / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=env
        )

    def ready(self) -> None:
        """Wait until a step can begin."""
        if not self._ready:
            self._read()
        self._ready = True

    def step(self) -> None:
        """Take one step and keep what it said; some trainers leave after their last one."""
        self.ready()
        self._ready = False
        _pipe(self._process.stdin).write("step\n")
        _pipe(self._process.stdin).flush()
        self.rows.append(self._read())

    def _read(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self._log.read()[-4000:]}")
        row: dict[str, Any] = json.loads(line)
        return row

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


Trainer = Callable[[Any, Turns], None]
