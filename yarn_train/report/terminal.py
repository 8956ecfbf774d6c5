"""The report as a person at a terminal sees it: tables, then where the files are."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from .collect import collect
from .page import training_grid, write_report
from .tables import perplexity_caption, perplexity_grid, to_rich


def show_report(folder: str | Path) -> None:
    """Write ``report/`` of a run folder and print its tables and paths.

    Raises:
        DataError: not a run folder.
    """
    written = write_report(folder)
    run = collect(folder)
    # A width of its own where the output is no terminal, so that a pipe does not cut the table to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if run.perplexity:
        console.print(to_rich(perplexity_grid(run.perplexity), title=f"{run.name}: perplexity by context window"))
        console.print(perplexity_caption(run.perplexity), style="dim")
    stages = [stage for stage in run.stages if stage.metrics]
    if stages:
        console.print(to_rich(training_grid(stages), title=f"{run.name}: training"))
    for path in written:
        print(path)
