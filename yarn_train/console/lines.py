"""Lines for a person: events, and one line about work that goes on. Never imports torch.

On a terminal the line is drawn over, and events appear above it. Elsewhere it is printed now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from . import terminal

REDRAW = 0.1  # seconds between two drawings
Part = tuple[int, str]  # (how soon it is left out where the line is too long: the largest first; text)


def say(text: str) -> None:
    """Print an event, at once even when the output is a file; above the line that is being drawn."""
    tqdm.write(text)  # to stdout
    sys.stdout.flush()


def silent(text: str) -> None:
    """The same on ranks that do not print."""


class Line:
    """The line about one piece of work."""

    def __init__(self, every: float, shown: bool = True):
        """
        Args:
            every: seconds between plain lines, where it cannot be drawn over.
            shown: False on ranks that do not print.
        """
        self.drawn = shown and terminal.rewrites(sys.stderr)
        self.plain = shown and not (self.drawn and sys.stdout.isatty())  # a log gets its lines beside the terminal's
        self.every = every
        self._bar: tqdm | None = None  # made when there is something to draw
        self._drawn_at = self._printed_at = -float("inf")
        self._pending = ""

    def show(self, parts: Sequence[Part], always: bool = False) -> None:
        """Say how the work stands.

        Args:
            always: print it also where the last plain line is younger than `every`.
        """
        now = time.monotonic()
        if self.drawn:
            self._pending = fitted(parts, terminal.width(sys.stderr) - 1)
            if now - self._drawn_at >= REDRAW:
                self._draw(now)
        if self.plain and (always or now - self._printed_at >= self.every):
            self._printed_at = now
            say(joined(parts))

    def close(self) -> None:
        """The work is done: what was shown last stays."""
        if self._bar is not None:
            self._draw(time.monotonic())
            self._bar.close()

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        if self._bar is None:
            self._bar = tqdm(desc=self._pending, bar_format="{desc}", file=sys.stderr)
        else:
            self._bar.set_description_str(self._pending)


def joined(parts: Sequence[Part]) -> str:
    """All parts as one line."""
    return "  ".join(text for _, text in parts if text)


def fitted(parts: Sequence[Part], width: int) -> str:
    """The parts that `width` columns have room for; the last one is cut if even that is too long."""
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and len(joined(kept)) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return joined(kept)[: max(0, width)]


def duration(seconds: float) -> str:
    """Seconds for a person: 45 s, 3 min 05 s, 2 h 10 min, 3 d 04 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"
