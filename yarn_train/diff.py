"""``python -m yarn_train.diff A B``: where two runs first differ, and the likely cause.

A and B are run folders, or a stage folder of each. Compared are options, software, prepared data, every step of
metrics.jsonl (no timings), checkpoints and models that both have, and perplexities. Exit codes: 0 all results that both
have are equal bit for bit (or within --tolerance), 1 they differ, 2 they cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence

from .compare.comparison import as_data, compare
from .compare.show import lines
from .dist import environment
from .errors import YarnTrainError
from .redact import guard_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m yarn_train.diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="run folder or stage folder")
    parser.add_argument("b", metavar="B", help="run folder or stage folder")
    parser.add_argument("--tolerance", type=_tolerance, default=0.0, help="relative distance that counts as equal")
    parser.add_argument("--no-weights", action="store_true", help="leave checkpoints and models out")
    parser.add_argument(
        "--quick", action="store_true", help="believe the hashes a checkpoint recorded; check sizes only"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    try:
        found = compare(options.a, options.b, options.tolerance, not options.no_weights, options.quick)
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(as_data(found), indent=1) if options.json else "\n".join(lines(found)))
    return 0 if found.equal else 1


def _tolerance(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0.0):
        raise argparse.ArgumentTypeError(f"{text}: a number >= 0, such as 1e-5")
    return value


if __name__ == "__main__":
    guard_streams(environment.secrets())
    sys.exit(main())
