"""Whether the run folder is this run's, or nobody's yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..config import Config
from ..errors import YarnTrainError
from ..stages import Stage
from ..train import run_folder, run_lock, same_run


def folder_errors(whole: Config, stages: Sequence[Stage], folder: Path) -> Iterator[YarnTrainError]:
    """Why the folder cannot be written by this run; writes nothing."""
    try:
        run_lock.refuse_foreign(folder)
    except YarnTrainError as error:
        yield error
        return  # what is in it is no run's
    checks: list[Callable[[], object]] = []
    if whole.run.resume == "never":
        checks.append(lambda: run_folder.refuse_existing(folder))
    checks.append(lambda: same_run.check_options(folder, whole, stages))
    for check in checks:
        try:
            check()
        except YarnTrainError as error:
            yield error
