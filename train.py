"""The training entry: compose the configuration, check it, run it. ``python train.py --help`` lists the options."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

# Whatever is heavy is imported where it is used: the processes that tokenise import this file too and need neither
# torch nor Hydra, a misspelt option needs no torch, and a process that only starts workers needs no transformers.


def train(raw: Mapping[str, Any], typed: Mapping[str, str], folder: Path) -> None:
    """Run the job in this process."""
    from yarn_train import app

    app.train(raw, typed, folder)


def start_workers(raw: Mapping[str, Any], typed: Collection[str], folder: Path, words: Sequence[str]) -> int | None:
    """Run the job in workers of its own."""
    from yarn_train.checks.workers import check_before_workers
    from yarn_train.launch import elastic

    check_before_workers(raw, typed, folder)
    return elastic.start_workers(raw, typed, folder, words)


def look(raw: Mapping[str, Any], typed: Collection[str], folder: Path) -> None:
    """Look for what can be seen at once, before the jobs of a sweep."""
    from yarn_train.checks.workers import check_before_workers

    check_before_workers(raw, typed, folder)


def check(raw: Mapping[str, Any], typed: Collection[str], folder: Path) -> None:
    """Look for everything that is wrong, where something is known to be."""
    from yarn_train.checks.start import check_start

    check_start(raw, typed, folder)


if __name__ == "__main__":
    from yarn_train import cli

    cli.run(train, start_workers, check, look)
