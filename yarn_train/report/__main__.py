"""``python -m yarn_train.report FOLDER ...``: write the report of a run, a sweep, or several of them side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import DataError, YarnTrainError, problem
from .terminal import show_comparison, show_report, show_with_jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one report and print its tables; the exit status is 1 where that could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m yarn_train.report",
        description="Write the report of a run, an evaluation, a sweep, a folder of runs, or of several side by side.",
    )
    parser.add_argument(
        "folder",
        nargs="+",
        help="run folder such as outputs/<run.name>, outputs/eval/<model>, sweep, or folder of runs",
    )
    parser.add_argument("-o", "--out", help="folder of the report; needed for several folders, else FOLDER/report")
    parser.add_argument("--jobs", action="store_true", help="of one sweep: write the report of every job too")
    given = parser.parse_args(arguments)
    try:
        if given.jobs and (given.out is not None or len(given.folder) > 1):
            raise DataError(problem("--jobs", "several folders or -o", "one sweep", "report the sweep by itself first"))
        if given.jobs:
            show_with_jobs(given.folder[0])
        elif given.out is not None:
            show_comparison(given.folder, given.out)
        elif len(given.folder) > 1:
            fix = "name one, such as -o outputs/comparison"
            raise DataError(problem("-o", "nothing", "a folder for the report of several folders", fix))
        else:
            show_report(given.folder[0])
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
