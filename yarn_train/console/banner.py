"""A banner: what a run is, or how it ended, as rows of a label and a text. Never imports torch.

On a terminal labels stand in a column and long texts wrap below their beginning. In a log each row is one line,
``label: text``, so that it can be searched for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from . import terminal

GAP = 2  # columns between labels and texts


@dataclass(frozen=True)
class Row:
    """One line of a banner, in words; `whole` is never broken into lines, so that it can be copied."""

    label: str
    text: str
    whole: bool = False


def render(title: str, rows: Sequence[Row], style: terminal.Style | None = None, good: bool = True) -> str:
    """A banner as one string without a newline at its end.

    Args:
        style: of the stream that it is for; stdout's without it.
        good: whether the title is good news.
    """
    style = style or terminal.Style()
    title = " ".join(title.split())
    told = [Row(row.label, " ".join(row.text.split()), row.whole) for row in rows if row.text]
    if not style.drawn:
        lines = [f"{style(f'{row.label}:', 'cyan')} {row.text}" for row in told]
        return "\n".join([style(title, "bold", "green" if good else "yellow"), *lines])
    columns = max(terminal.NARROWEST, min(terminal.WIDTH, terminal.width(style.stream)))
    head = f"── {title} {'─' * (columns - len(title) - 4)}"
    indent = max((len(row.label) for row in told), default=0) + GAP
    lines = [line for row in told for line in _wrapped(row, indent, columns, style)]
    return "\n".join([style(head, "bold", "green" if good else "yellow"), *lines, style("─" * columns, "dim")])


def _wrapped(row: Row, indent: int, columns: int, style: terminal.Style) -> list[str]:
    """A path or a command that is longer than a line stays whole: it is there to be copied."""
    room = columns - indent
    wrapped = textwrap.wrap(row.text, room, break_long_words=False, break_on_hyphens=False)
    parts = [row.text] if row.whole else wrapped
    first = f"{style(row.label, 'cyan')}{' ' * (indent - len(row.label))}{parts[0]}"
    return [first, *(f"{' ' * indent}{part}" for part in parts[1:])]
