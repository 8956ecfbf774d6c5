"""``python -m yarn_train.report outputs/<run> ...``: write the report of each run folder and print its numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import YarnTrainError
from .terminal import show_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Report every run folder given; the exit status is 1 where one of them could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m yarn_train.report", description="Write the report of finished runs."
    )
    parser.add_argument("run", nargs="+", help="run folder, outputs/<run.name>")
    status = 0
    for folder in parser.parse_args(arguments).run:
        try:
            show_report(folder)
        except YarnTrainError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
