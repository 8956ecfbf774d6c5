"""How far a piece of work is whose size is known from its beginning: a share, a rate and the time left."""

from __future__ import annotations

import time

from .lines import Line, duration

EVERY = 15.0  # seconds between lines of a log
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Work:
    """The line about it."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, shown: bool = True):
        """
        Args:
            total: of it, in `unit`.
            done: of it before now, which says nothing about the rate.
            shown: False on ranks that do not print.
        """
        self.label, self.total, self.unit = label, total, unit
        self.done = self._first = done
        self.what = ""
        self._line = Line(EVERY, shown)
        self._began = time.monotonic()

    def at(self, what: str) -> None:
        """Say what is done now."""
        self.what = what
        self._show()

    def reach(self, done: int, what: str) -> None:
        """So much is done in all, with a word on it."""
        ended = done == self.total > self.done
        self.done, self.what = done, what
        self._show(always=ended)

    def add(self, amount: int) -> None:
        """So much more is done."""
        self.done += amount
        self._show(always=self.done == self.total)

    def close(self) -> None:
        """No more of it will come."""
        self._line.close()

    def _show(self, always: bool = False) -> None:
        seconds = time.monotonic() - self._began
        rate = (self.done - self._first) / seconds if seconds > 0 else 0.0
        left = duration((self.total - self.done) / rate) if rate else ""
        share = self.done / self.total if self.total else 1.0
        self._line.show(
            [
                (0, self.label),
                (0, f"{share:.0%}"),
                (2, self.what),
                (3, f"{scaled(rate)}{self.unit}/s" if rate else ""),
                (1, f"{left} left" if left else ""),
            ],
            always,
        )


def scaled(number: float) -> str:
    """1,234 as 1.2 k."""
    for size, name in SCALES:
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:.1f} "
