"""Runs cells, each in a process of its own with a time limit, and keeps what became of each in a file.

A cell whose file is there is finished, whatever its status: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from bench.gpu.cells import Cell
from bench.gpu.outcome import MEMORY, TIME, Outcome, of_death

Row = dict[str, Any]
Process = Callable[[dict[str, Any], Path, float], Outcome]
GRACE = 5.0  # seconds before the limit at which a worker begins no other step
ALLOCATOR = "expandable_segments:True"  # long sequences otherwise fail on fragments


class Cells:
    """The folder of results.

    Args:
        device: cuda or cpu.
        limit: seconds that a process may take.
        process: runs one variant of a cell; another one in tests.
    """

    def __init__(self, folder: Path, device: str, limit: float, process: Process | None = None):
        self.folder, self.device, self.limit = folder, device, limit
        self.process = process or in_process

    def file(self, cell: Cell) -> Path:
        """Where a cell's row is."""
        return self.folder / "cells" / f"{cell.name}.json"

    def finished(self, cell: Cell, again: Collection[str] = ()) -> Row | None:
        """The row of a cell that has run as it is now; None if it must run.

        One that ran out of time under a shorter limit must.

        Args:
            again: statuses that do not count as finished.
        """
        try:
            row: Row = json.loads(self.file(cell).read_text())
        except (OSError, ValueError):
            return None
        same = row.get("spec") == cell.spec and row.get("variants") == [name for name, _ in cell.variants]
        if not same or row["status"] in again:
            return None
        ended = row["result"].get("status", row["status"])  # a search's own status is that of its last probe
        return None if ended == TIME and row["limit"] < self.limit else row

    def run(self, cell: Cell) -> Row:
        """Run the cell's variants until one does not run out of memory, and write its row."""
        started, tried = time.time(), []
        for name, part in cell.variants:
            outcome = self._one(cell, part)
            tried.append({"variant": name, "status": outcome.status, "reason": outcome.reason})
            if outcome.status != MEMORY:
                break
        row = {
            "name": cell.name,
            "kind": cell.kind,
            "spec": cell.spec,
            "variants": [name for name, _ in cell.variants],
            "status": outcome.status,
            "reason": outcome.reason,
            "variant": name,
            "tried": tried,
            "result": outcome.result,
            "machine": outcome.machine,
            "limit": self.limit,
            "seconds": round(time.time() - started, 1),
        }
        self.write(cell, row)
        return row

    def write(self, cell: Cell, row: Row) -> None:
        """Keep a row; a reader never sees half of one."""
        file = self.file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(row, indent=1) + "\n")
        unfinished.rename(file)

    def _one(self, cell: Cell, part: dict[str, Any]) -> Outcome:
        log = self.file(cell).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        models = str(self.folder.resolve() / "models")
        task = {**cell.spec, **part, "kind": cell.kind, "device": self.device, "models": models}
        return self.process(task, log, self.limit)


def in_process(
    task: dict[str, Any], log: Path, limit: float, program: Sequence[str] = (sys.executable, "-m", "bench.gpu.worker")
) -> Outcome:
    """One variant in a process of its own; what it prints goes to `log`, its whole group ends at the limit."""
    answer = log.with_suffix(".answer")
    answer.unlink(missing_ok=True)
    task = {**task, "deadline": time.time() + limit - min(GRACE, limit / 4), "parent": os.getpid()}
    command = [*program, json.dumps(task), str(answer)]
    # yarn_train's own names for a lone process; a launcher's would make it wait for other ranks
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    set_allocator(env)
    # A trainer takes the GPU that it sees, and transformers' all of them.
    env["CUDA_VISIBLE_DEVICES"] = "" if task["device"] == "cpu" else env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with log.open("w") as out:
        # A group of its own, to be ended with all that it started; of this session still, for those who end sessions.
        # A terminal's Ctrl-C and a stop of this group reach this process only, which ends the other on its way out.
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, process_group=0)
        try:
            code = worker.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(worker)
    found = _answer(answer)
    answer.unlink(missing_ok=True)
    if code is None:
        return Outcome(TIME, f"not finished after {limit:g} s", found.get("result", {}), found.get("machine", {}))
    if code == 0 and "status" in found:
        return Outcome(**found)
    status, reason = of_death(code, log.read_text(errors="replace"))
    return Outcome(status, reason, found.get("result", {}), found.get("machine", {}))


def set_allocator(env: MutableMapping[str, str]) -> None:
    """Unless it is set already, by its older name too; it counts for a process that has not used CUDA yet."""
    env.setdefault("PYTORCH_ALLOC_CONF", env.get("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR))


def leave_on_signals() -> None:
    """From now on SIGTERM and SIGHUP end this process as Ctrl-C does: by an exception, which ends the cell at hand."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, leave)


def _end_group(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _answer(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found
