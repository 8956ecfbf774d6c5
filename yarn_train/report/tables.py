"""Tables for the terminal, Markdown and HTML: one grid of texts, three ways to write it."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table as RichTable

from .rows import Row


@dataclass(frozen=True)
class Grid:
    """Texts in rows and columns.

    Attributes:
        bold: (row, column) of cells to stress.
        muted: rows to tone down.
        numeric: columns after the first are numbers, to be right aligned.
        links: (row, column) -> where a cell leads, relative to the page.
        values: (row, column) -> what to sort a cell by, where its text does not say it; given, the page can sort.
        words: columns of texts in a table of numbers.
    """

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()
    muted: frozenset[int] = frozenset()
    numeric: bool = True
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)
    values: Mapping[tuple[int, int], float] | None = None
    words: frozenset[int] = frozenset()


def main_mode(rows: Iterable[Row]) -> list[Row]:
    """Rows of the mode that pictures show: token_mean, or the first mode of an evaluation that has no such rows."""
    rows = list(rows)
    modes = [row.mode for row in rows]
    wanted = "token_mean" if "token_mean" in modes else next(iter(modes), None)
    return [row for row in rows if row.mode == wanted]


def alike(rows: Iterable[Row]) -> bool:
    """Whether all rows of a window are of the same tokens, as far as they say which (old ones do not)."""
    found: dict[int, tuple[object, ...]] = {}
    return all(found.setdefault(row.window, row.scored) == row.scored for row in rows if row.tokens)


def perplexity_grid(rows: Iterable[Row], mode: str | None = None, intervals: bool = False) -> Grid:
    """One row per label, one column per window, the lowest perplexity of each column bold, untrained labels muted.

    Labels keep the order in which they were evaluated. A label evaluated twice at a window keeps the later value. Cells
    that print the same as the lowest are bold too: a table must not rank what it does not show; nor does it rank values
    of different tokens. Without a mode it is that of :func:`main_mode`. With `intervals`, cells have the 95 % interval
    behind the value.
    """
    chosen = main_mode(rows) if mode is None else [row for row in rows if row.mode == mode]
    windows = sorted({row.window for row in chosen})
    labels = list(dict.fromkeys(row.label for row in chosen))
    found = {(row.label, row.window): row for row in chosen}
    values = {place: row.perplexity for place, row in found.items()}
    bold = set()
    for column, window in enumerate(windows, start=1):
        here = [row for (_, w), row in found.items() if w == window]
        finite = [row.perplexity for row in here if math.isfinite(row.perplexity)]
        best = number(min(finite)) if finite and alike(here) else None
        bold |= {(i, column) for i, label in enumerate(labels) if number(values.get((label, window))) == best}
    trained = {row.label for row in chosen if row.stage is not None}
    return Grid(
        header=["perplexity at", *map(str, windows)],
        body=[[label, *(_perplexity(found.get((label, w)), intervals) for w in windows)] for label in labels],
        bold=frozenset(bold),
        muted=frozenset(i for i, label in enumerate(labels) if trained and label not in trained),
    )


def _perplexity(row: Row | None, interval: bool) -> str:
    said = number(row.perplexity if row else None)
    return f"{said}{span(row.low, row.high)}" if row and interval else said


def span(low: float, high: float) -> str:
    """`` (5.10-5.45)`` behind a value: its interval; empty where it has none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" ({_end(low)}-{_end(high)})"


def _end(value: float) -> str:
    return number(value) if value >= 1000 else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def number(value: float | None) -> str:
    """A perplexity with four significant digits, as the paper's published tables have; empty where there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    if value < 1000:
        return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


def to_rich(grid: Grid, title: str | None = None) -> RichTable:
    """The grid for a terminal; long labels fold, numbers never do."""
    table = RichTable(title=title, title_justify="left", header_style="bold")
    table.add_column(grid.header[0], overflow="fold")
    for column, name in enumerate(grid.header[1:], start=1):
        table.add_column(name, justify="left" if _words(grid, column) else "right", no_wrap=not _words(grid, column))
    for i, texts in enumerate(grid.body):
        cells = [f"[bold green]{escape(t)}[/]" if (i, j) in grid.bold else escape(t) for j, t in enumerate(texts)]
        table.add_row(*cells, style="dim" if i in grid.muted else None)
    return table


def to_markdown(grid: Grid) -> str:
    """The grid as a Markdown table: first column left aligned, numbers right."""
    marks = [":--" if column == 0 or _words(grid, column) else "--:" for column in range(len(grid.header))]
    lines = [[_one_line(name) for name in grid.header], marks]
    for i, texts in enumerate(grid.body):
        cells = [_one_line(text) for text in texts]
        cells = [f"[{text}]({grid.links[i, j]})" if (i, j) in grid.links else text for j, text in enumerate(cells)]
        lines.append([f"**{text}**" if (i, j) in grid.bold else text for j, text in enumerate(cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_html(grid: Grid) -> str:
    """The grid as an HTML table; rows have the class ``muted`` where they are, columns of words ``text``."""
    lines = []
    for i, row in enumerate(grid.body):
        cells = [_cell(grid, i, j, text) for j, text in enumerate(row)]
        kind = ' class="muted"' if i in grid.muted else ""
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>\n")
    head = "".join(f"<th{_class(grid, j)}>{html.escape(name)}</th>" for j, name in enumerate(grid.header))
    kinds = [*([] if grid.numeric else ["texts"]), *([] if grid.values is None else ["sortable"])]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    head = f"<thead><tr>{head}</tr></thead>"
    return f"<table{kind}>\n{head}\n<tbody>\n{''.join(lines)}</tbody>\n</table>\n"


def _cell(grid: Grid, i: int, j: int, text: str) -> str:
    inside = html.escape(text)
    if (i, j) in grid.links:
        inside = f'<a href="{html.escape(grid.links[i, j])}">{inside.replace("__", "__<wbr>")}</a>'
    if (i, j) in grid.bold:
        inside = f"<b>{inside}</b>"
    value = grid.values.get((i, j)) if grid.values else None
    order = "" if value is None or not math.isfinite(value) else f' data-v="{value:.9g}"'
    tag = "td" if j else "th"
    return f"<{tag}{_class(grid, j)}{order}>{inside}</{tag}>"


def _class(grid: Grid, column: int) -> str:
    return ' class="text"' if column and grid.numeric and column in grid.words else ""


def _words(grid: Grid, column: int) -> bool:
    return not grid.numeric or column in grid.words


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).replace("|", r"\|")


def perplexity_caption(rows: Iterable[Row]) -> str:
    """One sentence that says what was scored; the numbers of different windows compare only if it was the same."""
    rows = list(rows)
    tokens, documents = {row.tokens for row in rows}, {row.documents for row in rows}
    if not rows or tokens == {0}:
        return ""
    if not alike(main_mode(rows)):
        return "The runs scored different tokens (other documents, places or strides), so rows do not compare."
    shared = len(tokens) == len(documents) == 1 and all(row.score_from is not None for row in rows)
    what = f"{_span(tokens)} tokens of {_span(documents)} held-out documents"
    if shared:
        return f"The same {what} are scored at every window, in blocks of {_span({row.stride for row in rows})}."
    return f"{what[0].upper()}{what[1:]} are scored; the first tokens of a document have less context than the window."


def _span(values: Iterable[int]) -> str:
    low, high = min(values := set(values)), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
