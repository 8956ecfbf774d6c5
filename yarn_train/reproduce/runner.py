"""Run what is missing, one command after the other; each has a log, and what is complete is not run again.

A folder belongs to one base and one set of books: results of others are never put beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..console.lines import duration
from ..errors import ConfigError, problem
from .experiments import BASE, Run

ROOT = Path(__file__).resolve().parents[2]
STDLIB = "standard library"
DONE, INPUTS, LOCK = "done.json", "inputs.json", ".lock"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """A command that did not end well, and where it says why."""

    run: Run
    code: int
    log: Path


def run_all(runs: Sequence[Run], out: Path, books: str | None, say: Say) -> list[Failure]:
    """Run every command that has not been; one that fails does not stop those that do not need it.

    Args:
        out: folder of the reproduction.
        books: folder of the books, where the commands read any.
        say: prints a line.

    Raises:
        ConfigError: the folder is that of other books or of another base, or somebody is at work in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, blocking=False):
            _claim(out, books)
            return _run_all(runs, out, books, say)
    except Timeout:
        fix = "wait for it, or name another folder"
        raise ConfigError(problem("--out", str(out), "a folder in which no other reproduction runs", fix)) from None


def _claim(out: Path, books: str | None) -> None:
    """Note what the folder's numbers come from."""
    mine, there = inputs(books), _read(out / INPUTS)
    if there not in ({}, mine):
        differ = ", ".join(key for key in mine if there.get(key) != mine[key])
        fix = "name another folder, or give the same books"
        raise ConfigError(problem("--out", str(out), f"a new folder: it has results of another input ({differ})", fix))
    _write(out / INPUTS, mine)


def inputs(books: str | None) -> dict[str, str]:
    """What decides the numbers beside the commands: SHA-256 of the base's weights and of the books' names and sizes."""
    listed = STDLIB
    if books is not None:
        files = sorted(path for path in Path(books).rglob("*") if path.is_file())
        listed = _sha256("".join(f"{file.relative_to(books)} {file.stat().st_size}\n" for file in files).encode())
    return {"books": listed, "base": _sha256((ROOT / BASE / "model.safetensors").read_bytes())}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _run_all(runs: Sequence[Run], out: Path, books: str | None, say: Say) -> list[Failure]:
    done, failed, broken = _read(out / DONE), [], set[str]()
    for number, run in enumerate(runs, start=1):
        words = [*run.program, *run.words]  # without this machine's paths, so that done.json can be published
        head = f"[{number}/{len(runs)}] {run.title}"
        if done.get(run.key) == words:
            say(f"{head}  complete already")
            continue
        if missing := [key for key in run.needs if key in broken]:
            say(f"{head}  left out: it needs {', '.join(missing)}")
            broken.add(run.key)
            continue
        log = out / "logs" / f"{run.key.replace('/', '_')}.log"
        command = command_of(run, out, books)
        say(f"{head}  {shlex.join(command)}")
        seconds, code = _call(command, log)
        if code:
            say(f"{head}  failed with exit code {code}, see {log}")
            failed.append(Failure(run, code, log))
            broken.add(run.key)
            continue
        say(f"{head}  complete in {duration(seconds)}")
        done[run.key] = words
        _write(out / DONE, done)
    return failed


def command_of(run: Run, out: Path, books: str | None) -> list[str]:
    """What is typed after ``python``."""
    words = (*run.program, *run.words)
    return [word.replace("{out}", str(out)).replace("{books}", books or "") for word in words]


def _call(command: Sequence[str], log: Path) -> tuple[float, int]:
    """Run it in the project's folder; it is told of Ctrl-C by the terminal, as we are."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except BaseException:
            process.wait()
            raise
    return time.monotonic() - began, code


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no file.

    Raises:
        ConfigError: it is damaged. What it listed would be run again over finished folders.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            problem(str(path), str(error), "a readable JSON object", "restore it, or move it away")
        ) from error
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)
