"""``python -m yarn_train.report outputs/<run> ...``: write the report of each run folder and print its numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from ..errors import YarnTrainError
from .collect import collect
from .page import training_grid, write_report
from .tables import perplexity_caption, perplexity_grid, to_rich


def main(arguments: Sequence[str] | None = None) -> int:
    """Report every run folder given; the exit status is 1 where one of them could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m yarn_train.report", description="Write the report of finished runs."
    )
    parser.add_argument("run", nargs="+", help="run folder, outputs/<run.name>")
    status = 0
    for folder in parser.parse_args(arguments).run:
        try:
            _report(folder)
        except YarnTrainError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


def _report(folder: str) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
