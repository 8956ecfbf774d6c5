"""Which of several ranks failed first: the others only tell what its end did to them."""

from __future__ import annotations

import json
import platform
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from .. import errors

AGENT = 30.0  # seconds after SIGTERM at which torch's agent kills a worker that does not end
LOG = "\n  its log:"
HINTS = {
    "SIGKILL": " (often because memory ran out: see dmesg)",
    "SIGBUS": " (a file that it read was cut short, or the storage under it failed)",
}
CODES = {
    name: cls.exit_code for name, cls in vars(errors).items() if isinstance(cls, type) and hasattr(cls, "exit_code")
}


@dataclass(frozen=True)
class Failure:
    """How a worker failed.

    Attributes:
        rank: its global rank.
        code: its exit code; negative for the signal that killed it, as in :mod:`subprocess`.
        kind: class of its error; empty where it left none.
        message: its error; empty where it left none.
        time: when, in seconds since the epoch.
    """

    rank: int
    code: int
    kind: str
    message: str
    time: float

    @property
    def is_users(self) -> bool:
        """Whether the user has to change something, so that another start would fail in the same way."""
        return CODES.get(self.kind, 1) != 1

    @property
    def is_lost(self) -> bool:
        """Whether it only says that other ranks were gone."""
        return self.kind == errors.RanksLost.__name__

    @property
    def reason(self) -> str:
        """The first line of its error; of one that lost the others, also whom it names for it."""
        first, _, rest = f"{self.kind}: {self.message}".partition("\n")
        return f"{first}; {rest.partition(chr(10))[0]}" if self.is_lost and rest.startswith("rank ") else first

    @property
    def exit_code(self) -> int:
        """What the job exits with: the worker's own code, or 128 + its signal as shells have it."""
        return self.code if self.code > 0 else 128 - self.code


def left(rank: int, file: Path) -> Failure | None:
    """The error that a rank left in `file`, in torch's format; None without one."""
    try:
        data = json.loads(file.read_text())["message"]
    except (OSError, ValueError, KeyError):
        return None
    kind, _, message = str(data["message"] if isinstance(data, dict) else data).partition(": ")
    return Failure(rank, CODES.get(kind, 1), kind, message, file.stat().st_mtime)


def seen(rank: int, failure: ProcessFailure, file: Path) -> Failure:
    """What is known of a rank's failure: what the agent saw, and what the rank left in `file`."""
    known = left(rank, file)
    if known is None:
        return Failure(rank, failure.exitcode, "", "", float(failure.timestamp))
    return replace(known, code=failure.exitcode)


def first(failures: Iterable[Failure]) -> Failure:
    """The failure that the others followed from.

    A rank that lost the others, or that the agent ended after the first failure was seen, is never the first while
    there is another; of the rest it is the earliest.
    """
    known = list(failures)
    killed = min(f.time for f in known) + AGENT - 5  # from then on
    ended = {f.rank: f.code == -signal.SIGTERM or (f.code == -signal.SIGKILL and f.time > killed) for f in known}
    return min(known, key=lambda f: (ended[f.rank], f.is_lost, f.time, f.rank))


def told(failure: Failure, log: Path, nodes: int, stood: str = "") -> str:
    """The lines for the console.

    Args:
        log: the file of the rank's stderr.
        nodes: machines of the job; only this one's failures are known here.
        stood: where in the run the rank was.
    """
    if failure.is_lost and "; rank " in failure.reason:
        head = "lost the others"
    elif failure.is_lost:
        elsewhere = "the first failure is on another machine, or the network's" if nodes > 1 else "none of them failed"
        head = f"lost the others ({elsewhere})"
    else:
        head = "failed first" + (" of this machine's" if nodes > 1 else "")
    if failure.code < 0:
        name = signal.Signals(-failure.code).name
        end = f"killed by {name}"
        end += HINTS.get(name, "")
    else:
        end = f"exit code {failure.code}"
    if failure.is_users:
        why = f"{failure.kind}: {failure.message}"
    else:
        why = failure.reason if failure.kind else last_line(log)
    at = f" at {stood}" if stood else ""
    return f"rank {failure.rank} on {platform.node()} {head}{at}, {end}{f': {why}' if why else ''}{LOG} {log}"


def last_line(log: Path) -> str:
    """The last line of a log that says anything; empty without one."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
