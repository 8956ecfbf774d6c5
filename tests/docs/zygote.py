"""A process that has imported everything once and forks for each command: a snippet costs its work, not its imports.

Reads one JSON object per line, ``{"words": what python is given, "folder": where, "output": file}``, answers with the
exit code. ``-c`` runs a program's text.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback

import torch  # noqa: F401
import transformers  # noqa: F401

import yarn_train.app
import yarn_train.eval.__main__  # noqa: F401

FIRST = sys.stdin.buffer


def run(words: list[str]) -> None:
    """What ``python *words`` does."""
    if words[0] == "-m":
        sys.argv = [words[1], *words[2:]]
        for name in [n for n in sys.modules if n == words[1] or n == f"{words[1]}.__main__"]:
            del sys.modules[name]  # a module that is imported already is not run a second time
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c"]
        exec(compile(words[1], "snippet", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def child(job: dict[str, object]) -> int:
    """Run one command with its output in a file; returns the exit code."""
    os.chdir(str(job["folder"]))
    sys.path.insert(0, str(job["folder"]))
    output = os.open(str(job["output"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        run(list(job["words"]))  # type: ignore[call-overload]
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Answer until the input ends."""
    for line in FIRST:
        pid = os.fork()
        if not pid:
            code = 70
            try:
                code = child(json.loads(line))
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
