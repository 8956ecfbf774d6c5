"""Starts runs in a second: a process that has imported everything and forks the ranks of each run.

Reads one JSON object per line: {options, typed, folder, ranks, log, die}. Answers with the ranks' process ids, then,
when all have ended, with {codes, calls}: exit codes (negative: the signal) and how many calls each rank made that
change the file system or write a part of a checkpoint's file. `die` is [rank, call]: that rank kills itself with
SIGKILL right before that call.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yarn_train import app
from yarn_train.checkpoint import safetensors_file
from yarn_train.dist import failure

CHUNK = 1 << 15  # bytes of a checkpoint's file per write: a kill hits its middle too
CALLS = ("rename", "replace", "fsync", "unlink", "remove", "rmdir", "mkdir", "truncate", "link", "open")


def count_calls(die_at: int | None) -> Callable[[], int]:
    """Count the calls of this process that change files, and die right before number `die_at`."""
    made = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return run

    class Counted(io.FileIO):
        write = counted(io.FileIO.write)

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    vars(safetensors_file).update(CHUNK=CHUNK, open=lambda path, mode, buffering: Counted(path, mode.replace("b", "")))
    return lambda: made


def be_rank(rank: int, port: int, order: dict[str, Any]) -> int:
    """One rank of a run, from start to end; returns its exit code."""
    log = os.open(f"{order['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["ranks"], "LOCAL_WORLD_SIZE": order["ranks"]}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    die = order["die"]
    calls = count_calls(die[1] if die and die[0] == rank else None)
    try:
        app.train(order["options"], order["typed"], Path(order["folder"]))
        Path(f"{order['log']}.calls.{rank}").write_text(str(calls()))
        return 0
    except Exception as error:
        traceback.print_exception(failure.explained(error))
        return 1


def serve(order: dict[str, Any]) -> None:
    """Start the ranks of one run and answer when they have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(order["ranks"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = be_rank(rank, port, order)
            finally:
                sys.stdout.flush()
                os._exit(code)
        pids.append(pid)
    answer({"pids": pids})
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    counted = [Path(f"{order['log']}.calls.{rank}") for rank in range(order["ranks"])]
    answer({"codes": codes, "calls": [int(file.read_text()) if file.exists() else 0 for file in counted]})


def answer(value: dict[str, Any]) -> None:
    """One line to whoever gave the order."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    answer({"ready": True})
    for line in sys.stdin:
        serve(json.loads(line))
