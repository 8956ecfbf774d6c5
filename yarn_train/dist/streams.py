"""What this process prints must never end it: a log on a full disk, a terminal that is gone. Never imports torch."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, TextIO


class Tolerant:
    """A text stream whose writes may fail; all else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def never_fail() -> None:
    """From now on, losing stdout or stderr costs their lines and nothing else."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Tolerant):
            setattr(sys, name, Tolerant(stream))
