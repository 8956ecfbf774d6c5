"""Tables for the terminal, Markdown and HTML: one grid of texts, three ways to write it."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table as RichTable

from .collect import Row


@dataclass(frozen=True)
class Grid:
    """Texts in rows and columns; `bold` holds (row, column) of cells to stress, `muted` whole rows to tone down."""

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()
    muted: frozenset[int] = frozenset()
    numeric: bool = True  # columns after the first are numbers, to be right aligned


def perplexity_grid(rows: Iterable[Row], mode: str = "token_mean") -> Grid:
    """One row per label, one column per window, the lowest perplexity of each column bold, untrained labels muted.

    Labels keep the order in which they were evaluated. A label evaluated twice at a window keeps the later value. Cells
    that print the same as the lowest are bold too: a table must not rank what it does not show.
    """
    chosen = [row for row in rows if row.mode == mode]
    windows = sorted({row.window for row in chosen})
    labels = list(dict.fromkeys(row.label for row in chosen))
    values = {(row.label, row.window): row.perplexity for row in chosen}
    bold = set()
    for column, window in enumerate(windows, start=1):
        finite = [v for (_, w), v in values.items() if w == window and math.isfinite(v)]
        best = number(min(finite)) if finite else None
        bold |= {(i, column) for i, label in enumerate(labels) if number(values.get((label, window))) == best}
    trained = {row.label for row in chosen if row.stage is not None}
    return Grid(
        header=["perplexity at", *map(str, windows)],
        body=[[label, *(number(values.get((label, w))) for w in windows)] for label in labels],
        bold=frozenset(bold),
        muted=frozenset(i for i, label in enumerate(labels) if label not in trained),
    )


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
    for name in grid.header[1:]:
        table.add_column(name, justify="right" if grid.numeric else "left", no_wrap=grid.numeric)
    for i, texts in enumerate(grid.body):
        cells = [f"[bold green]{escape(t)}[/]" if (i, j) in grid.bold else escape(t) for j, t in enumerate(texts)]
        table.add_row(*cells, style="dim" if i in grid.muted else None)
    return table


def to_markdown(grid: Grid) -> str:
    """The grid as a Markdown table: first column left aligned, numbers right."""
    lines = [list(grid.header), [":--", *["--:" if grid.numeric else ":--"] * (len(grid.header) - 1)]]
    for i, texts in enumerate(grid.body):
        cells = [text.replace("|", r"\|") for text in texts]
        lines.append([f"**{text}**" if (i, j) in grid.bold else text for j, text in enumerate(cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_html(grid: Grid) -> str:
    """The grid as an HTML table; rows have the class ``muted`` where they are."""
    lines = []
    for i, texts in enumerate(grid.body):
        cells = [html.escape(text) for text in texts]
        data = "".join(
            f"<td><b>{text}</b></td>" if (i, j) in grid.bold else f"<td>{text}</td>"
            for j, text in enumerate(cells[1:], start=1)
        )
        kind = ' class="muted"' if i in grid.muted else ""
        lines.append(f"<tr{kind}><th>{cells[0]}</th>{data}</tr>\n")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in grid.header)
    kind = "" if grid.numeric else ' class="texts"'
    head = f"<thead><tr>{head}</tr></thead>"
    return f"<table{kind}>\n{head}\n<tbody>\n{''.join(lines)}</tbody>\n</table>\n"


def perplexity_caption(rows: Iterable[Row]) -> str:
    """One sentence that says what was scored; the numbers of different windows compare only if it was the same."""
    rows = list(rows)
    tokens, documents = {row.tokens for row in rows}, {row.documents for row in rows}
    if not rows or tokens == {0}:
        return ""
    shared = len(tokens) == len(documents) == 1 and all(row.score_from is not None for row in rows)
    what = f"{_span(tokens)} tokens of {_span(documents)} held-out documents"
    if shared:
        return f"The same {what} are scored at every window, in blocks of {_span({row.stride for row in rows})}."
    return f"{what[0].upper()}{what[1:]} are scored; the first tokens of a document have less context than the window."


def _span(values: Iterable[int]) -> str:
    low, high = min(values := set(values)), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
