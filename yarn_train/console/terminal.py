"""The one place that decides what a stream can show: colours, a line that is rewritten, how wide. Never imports torch.

Colours follow no-color.org and bixense.com/clicolors; a terminal is plain where TERM says dumb. Under CI nothing is
rewritten and nothing is drawn, even where there is a terminal: what is left of it is a log.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ..dist import environment

WIDTH = 100  # columns of a banner at most, and where a stream does not tell its own
NARROWEST = 40
CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def rewrites(stream: Any) -> bool:
    """Whether lines of this stream can be drawn over: it is a terminal that somebody looks at."""
    return bool(stream.isatty()) and not environment.dumb_terminal() and not environment.continuous_integration()


def coloured(stream: Any) -> bool:
    """Whether escape codes for colours belong into this stream."""
    wanted = environment.wants_colours()
    return wanted if wanted is not None else rewrites(stream)


def width(stream: Any) -> int:
    """Columns of a stream now, as terminals can be resized; WIDTH where it has none."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):  # no terminal, closed, or no real file
        return WIDTH
    return columns or WIDTH  # 0 in a pseudo-terminal that nobody gave a size


class Style:
    """Paints text for one stream, or leaves it as it is."""

    def __init__(self, stream: Any = None):
        self.stream = sys.stdout if stream is None else stream
        self.colours = coloured(self.stream)
        self.drawn = rewrites(self.stream)

    def __call__(self, text: str, *names: str) -> str:
        """The text in these CODES."""
        if not self.colours or not text:
            return text
        return f"\x1b[{';'.join(CODES[name] for name in names)}m{text}\x1b[0m"
