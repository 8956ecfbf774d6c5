"""``python -m yarn_train.reproduce`` or ``make reproduce``: the paper's findings on the shipped base, on one machine.

Runs what is missing, then writes results.json, results.md and index.html. It can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..console.lines import say
from ..errors import ConfigError, YarnTrainError, problem
from ..report.blocks import Picture
from ..report.html import as_html
from ..report.markdown import as_markdown
from ..report.stills import still
from ..report.style import picture
from .experiments import SEEDS, Run, runs
from .page import blocks
from .results import collect
from .runner import command_of, run_all

OUT = "outputs/reproduce"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, collect, write; the exit status is 1 where a command failed or nothing could be written."""
    given = _parser().parse_args(arguments)
    try:
        return _main(given)
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _main(given: argparse.Namespace) -> int:
    out = Path(given.out)
    books = _books(given.books)
    wanted = _wanted(given, books is not None)
    if given.list:
        for run in wanted:
            say(f"{run.key}: python {shlex.join(command_of(run, out, books))}")
        return 0
    failed = [] if given.report else run_all(wanted, out, books, say)
    write(out)
    for failure in failed:
        say(f"failed: {failure.run.title}, exit code {failure.code}, see {failure.log}")
    return 1 if failed else 0


def write(out: Path) -> None:
    """results.json, results.md with its pictures, and index.html of what is there.

    Raises:
        DataError: nothing is.
    """
    found = collect(out)
    page = blocks(found)
    texts = {
        "results.json": json.dumps(found, indent=1, allow_nan=False) + "\n",
        "results.md": as_markdown(page),
        "index.html": as_html(page, "Reproduction of YaRN at small scale"),
    }
    for name, text in texts.items():
        aside = out / f".{name}.{os.getpid()}"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, out / name)
    for block in page:
        if isinstance(block, Picture) and block.path is not None:
            picture(still)(block.figures, out / block.path)
    say(f"wrote {', '.join(str(out / name) for name in texts)}")


def _books(folder: str | None) -> str | None:
    if folder is None:
        return None
    if not (Path(folder) / "train").is_dir():
        fix = "leave it out to take the standard library"
        raise ConfigError(problem("--books", folder, "a folder of books in PG19's layout: train/*.txt", fix))
    return str(Path(folder).absolute())


def _wanted(given: argparse.Namespace, books: bool) -> list[Run]:
    everything = runs(books, given.seeds)
    if not given.only:
        return everything
    chosen = [run for run in everything if any(name in run.key for name in given.only)]
    if not chosen:
        known = ", ".join(dict.fromkeys(run.key.rsplit("/seed_", 1)[0] for run in everything))
        raise ConfigError(problem("--only", " ".join(given.only), f"a part of {known}", "see --list"))
    wanted, waiting = set[str](), [run.key for run in chosen]
    by_key = {run.key: run for run in everything}
    while waiting:
        key = waiting.pop()
        wanted.add(key)
        waiting += by_key[key].needs
    return [run for run in everything if run.key in wanted]


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m yarn_train.reproduce",
        description="Reproduce the findings of the YaRN paper on the shipped base: trainings, evaluations, one page.",
    )
    parser.add_argument("--out", default=OUT, help=f"folder of the reproduction (default: {OUT})")
    parser.add_argument("--books", help="books in PG19's layout to train and evaluate on; else the standard library")
    parser.add_argument("--seeds", type=_seeds, default=SEEDS, help="default: 0,1,2; the base comes with 0")
    parser.add_argument("--only", nargs="+", help="only the commands whose folder's name holds one of these")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page of what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
