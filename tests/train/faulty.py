"""train.py, but a rank does something wrong once: ``python faulty.py FAULT OPTIONS...``.

FAULT is ``act:rank:step:file``; the file is made right before, and where it exists nothing happens any more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train as entry
from yarn_train import cli


def fault(act: str, folder: Path) -> None:
    """Go wrong."""
    if act == "raise":
        raise RuntimeError("the first error")
    if act == "segfault":
        ctypes.string_at(0)
    if act == "truncate":
        for file in folder.rglob("*.arrow"):
            os.truncate(file, 4096)
        return
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}[act])


def train(raw: Any, typed: Any, folder: Path) -> None:
    """Train with the fault built in."""
    from yarn_train.train import loop

    act, rank, step, once = os.environ["YARN_TRAIN_TEST_FAULT"].split(":")
    real = loop.forward_and_backward

    def faulty(trainer: Any, batches: Any) -> float:
        if (trainer.runtime.rank, trainer.state.step) == (int(rank), int(step)) and not Path(once).exists():
            Path(once).touch()
            fault(act, Path(raw["data"]["cache"]))
        return real(trainer, batches)

    loop.forward_and_backward = faulty
    entry.train(raw, typed, folder)


if __name__ == "__main__":
    cli.run(train, entry.start_workers)
