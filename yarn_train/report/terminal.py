"""The report as a person at a terminal sees it: tables, then where the files are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from .collect import Run
from .eval_figures import Scene, scene_of
from .eval_tables import harness_grid, line_sentence, passkey_grid, price_grid, ramp_grid, temperature_grid
from .group_page import commands, summary
from .group_tables import failure_grid, job_grid
from .groups import Group, collect_group
from .page import training_grid
from .regressions import by_model, regressions
from .side_by_side import side_by_side
from .tables import Grid, perplexity_caption, perplexity_grid, to_rich
from .write import check_free, read, write_report, write_subject

ROWS = 40  # of a table of jobs


def show_report(folder: str | Path) -> None:
    """Write ``report/`` of a run folder, a sweep or a folder of runs, and print its tables and paths.

    Raises:
        DataError: it is none of these.
    """
    show_subject([folder], Path(folder) / "report")


def show_with_jobs(folder: str | Path) -> None:
    """Write the report of every run in a sweep or a folder of runs, then as :func:`show_report`, which links to them.

    Raises:
        DataError: the folder is neither.
    """
    for member in collect_group(folder).members:
        if member.run is not None:
            write_report(member.folder)
    show_report(folder)


def show_comparison(folders: Sequence[str | Path], out: str | Path) -> None:
    """Write the report of several folders side by side into `out`, and print its tables and paths.

    Raises:
        DataError: none of the folders holds a run, or `out` holds something else.
    """
    check_free(Path(out))
    show_subject(folders, Path(out))


def show_subject(folders: Sequence[str | Path], out: Path) -> None:
    """Write one report of these folders into `out`, and print it."""
    subject = read(folders)
    written = write_subject(subject, out)
    # A width of its own where the output is no terminal, so that a pipe does not cut the table to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    show_run(console, subject) if isinstance(subject, Run) else _group(console, subject)
    for path in written:
        print(path)


def show_run(console: Console, run: Run) -> None:
    """Print the tables of one run: what was measured, then how it was trained."""
    found = run.evaluations
    if run.perplexity:
        _perplexity(console, run.name, scene_of(run))
    if found.passkey:
        console.print(to_rich(passkey_grid(found.passkey), title=f"{run.name}: passkey"))
    asked = [score for score in found.harness if score.group is None]  # members of groups are on the page
    for label, pairs in by_model(regressions(asked)).items():
        console.print(to_rich(harness_grid(pairs), title=f"{label}: benchmarks against the base"))
    if found.dynamic:
        console.print(to_rich(perplexity_grid(found.dynamic), title=f"{run.name}: dynamic scaling, without training"))
    if found.best:
        console.print(to_rich(temperature_grid(found.best), title=f"{run.name}: temperature, without training"))
    if found.line:
        console.print(line_sentence(found.line), style="dim")
    if found.ramp:
        console.print(to_rich(ramp_grid(found.ramp, found.ramp_best), title=f"{run.name}: ramps, without training"))
    stages = [stage for stage in run.stages if stage.metrics]
    if stages:
        console.print(to_rich(training_grid(stages), title=f"{run.name}: training"))


def _perplexity(console: Console, name: str, scene: Scene) -> None:
    rows = scene.found.perplexity
    grid = perplexity_grid(rows, intervals=True)
    grid = grid if _width(grid) <= console.width else perplexity_grid(rows)
    console.print(to_rich(grid, title=f"{name}: perplexity by context window"))
    console.print(perplexity_caption(rows), style="dim")
    price = price_grid(rows, scene.found.documents, scene.length)
    if price:
        console.print(to_rich(price, title="The price at short windows: perplexity more than the base's"))


def _width(grid: Grid) -> int:
    """Columns of a terminal that the whole table takes."""
    lines = [grid.header, *grid.body]
    return sum(max(len(line[j]) for line in lines) + 3 for j in range(len(grid.header))) + 1


def _group(console: Console, group: Group) -> None:
    def nowhere(_: object) -> str:
        return ""

    grid = job_grid(group, nowhere)
    more = len(grid.body) - ROWS
    title = f"{group.name}: the best {ROWS}; {more} more are in the report" if more > 0 else group.name
    console.print(to_rich(replace(grid, body=grid.body[:ROWS]), title=title))
    if group.failed():
        console.print(to_rich(failure_grid(group, nowhere), title="What did not end well"))
    for line in group.problems:
        if all(line != member.problem for member in group.failed()):
            console.print(line, markup=False)
    scene = side_by_side(group)
    if scene and scene.found.perplexity:
        _perplexity(console, "side by side", scene)
    console.print(summary(group), markup=False)
    best = group.best()
    if best:
        console.print(f"best: {best.name}, {group.metric} = {best.objective:.5g}", markup=False, style="bold")
        for typed in commands(best):
            console.print(f"  {typed}", markup=False, soft_wrap=True)
