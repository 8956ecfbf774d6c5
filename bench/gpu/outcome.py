"""What became of a cell: one of five words, and the reason in one line. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OK, MEMORY, MISSING, TIME, FAILED = "ok", "out of memory", "not available", "timed out", "failed"
STATUSES = (OK, MEMORY, MISSING, TIME, FAILED)
# The last two are how cuBLAS and cuDNN say that nothing was left for their own workspaces.
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cudaErrorMemoryAllocation",
    "_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
LONGEST = 400  # characters of a reason


class Missing(Exception):
    """What a cell needs is not here: a package, a kind of GPU; says which."""


@dataclass(frozen=True)
class Outcome:
    """How one process ended.

    Attributes:
        result: the numbers; of one that was stopped, those it had so far.
    """

    status: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)


def of_error(error: BaseException) -> tuple[str, str]:
    """The status and the reason of an exception."""
    text = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    known_by_name = type(error).__name__ in ("OutOfMemoryError", "MemoryError")  # torch's own, without importing it
    if known_by_name or (isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)):
        return MEMORY, text
    if isinstance(error, TimeoutError):
        return TIME, text
    if isinstance(error, Missing):
        return MISSING, text
    if isinstance(error, ImportError):
        return MISSING, f"{type(error).__name__}: {text}"
    return FAILED, f"{type(error).__name__}: {text}"


def of_death(code: int, log: str) -> tuple[str, str]:
    """The status and the reason of a process that ended by itself and left no result."""
    if code == -9:
        return MEMORY, "killed by the system, which is what happens when host memory runs out"
    tail = [line for line in log.splitlines() if line.strip()]
    last = f": {tail[-1].strip()[:LONGEST]}" if tail else ""
    return FAILED, (f"killed by signal {-code}" if code < 0 else f"exit code {code}") + last
