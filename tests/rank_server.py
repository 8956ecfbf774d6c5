"""Runs train.py on several ranks without torchrun: a process that has imported everything and forks them.

Reads one JSON object per line, {words, ranks, environ, logs}, and answers with {codes}, the ranks' exit codes
(negative: the signal), when all have ended. Importing takes most of a tiny run's time; tests of what a launcher does
start one.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from typing import Any

from support import ROOT, free_port

from yarn_train import app, cli

assert app
assert cli


def be_rank(rank: int, port: int, order: dict[str, Any]) -> int:
    """One rank, in a process that is not the server's any more; returns its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, log in enumerate(order["logs"], start=1):
        os.dup2(os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["ranks"], "LOCAL_WORLD_SIZE": order["ranks"]}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.clear()
    os.environ.update({**order["environ"], **{name: str(value) for name, value in told.items()}})
    sys.argv = [str(ROOT / "train.py"), *order["words"]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """Start what is ordered until the orders end."""
    for line in sys.stdin:
        order = json.loads(line)
        port, pids = free_port(), []
        for rank in range(order["ranks"]):
            pid = os.fork()
            if pid == 0:
                sys.exit(be_rank(rank, port, order))
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes}), flush=True)


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    serve()
