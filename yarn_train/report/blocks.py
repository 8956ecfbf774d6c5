"""What a report consists of, from top to bottom; html.py and markdown.py write the same blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .figures.base import Figure
from .tables import Grid


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Picture:
    """Something to look at: interactive figures on the page, a PNG beside it for Markdown and where scripts are off.

    Attributes:
        path: the PNG; None where there is none.
        text: what it shows.
        figures: panels, by their titles; one without a title stands alone.
        caption: how to read the figures, a sentence above them.
        scale: lowest and highest value of the panels' common colours, in words; empty for none.
    """

    path: Path | None
    text: str
    figures: Sequence[tuple[str, Figure]] = ()
    caption: str = ""
    scale: tuple[str, str] | None = None


@dataclass(frozen=True)
class Code:
    """Something to type."""

    text: str


@dataclass(frozen=True)
class Folded:
    """A table that few will look at: folded away on the page, left out of Markdown but for its title."""

    title: str
    grid: Grid


Block = Heading | Picture | Grid | Code | Folded | str  # a str is a paragraph of plain text
