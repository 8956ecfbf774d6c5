"""``python -m yarn_train.doctor``: what is wrong with this machine for training, and what to do, in half a minute.

With ``--nodes`` on every machine of a cluster: which of them is slow, broken, different or missing.
Exit codes: 0 ready, with warnings or without; 1 something is broken that a run needs; 2 a wrong option, or a report
that could not be written; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..dist import environment
from ..dist.stop import INTERRUPTED
from ..errors import ConfigError, YarnTrainError, problem
from ..redact import guard_streams
from .finding import broken, verdict
from .run import run_checks
from .show import Printer, unwritable, write_json
from .suite import names, not_with, suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; returns the exit code."""
    begin = time.monotonic()
    options = parser().parse_args(arguments)
    try:
        check(options)
        if options.nodes is not None:
            from .nodes.entry import diagnose  # imports torch

            return diagnose(options)
        composed = composed_options(options)
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    printer = Printer(sys.stderr if options.json == "-" else sys.stdout)
    checks = suite(composed, options.quick, options.only)
    found = run_checks(checks, show=printer.finding, words=same_machine(options))
    text = verdict(found, options.experiment)
    seconds = time.monotonic() - begin
    printer.verdict(f"{text}; {seconds:.1f} s", broken(found))
    written = not options.json or write_json(options.json, found, text, seconds)
    return 1 if broken(found) else 0 if written else ConfigError.exit_code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m yarn_train.doctor", description=(__doc__ or "").split(":", 1)[1], allow_abbrev=False
    )
    made.add_argument("overrides", nargs="*", metavar="option=value", help="options of train.py, with --experiment")
    made.add_argument("--experiment", metavar="NAME", help="also hold the machine against this experiment's needs")
    made.add_argument("--json", metavar="FILE|-", help="write the same facts as JSON (-: to stdout)")
    made.add_argument("--quick", action="store_true", help="measure no speed: seconds, for health checks")
    made.add_argument("--only", action="append", metavar="CHECK", choices=names(), help=f"of: {', '.join(names())}")
    nodes = made.add_argument_group("several machines; start the same command on each of them")
    nodes.add_argument("--nodes", nargs="?", type=int, const=0, metavar="N", help="compare N machines")
    nodes.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="where they meet, HOST being one of them; not with torchrun"
    )
    nodes.add_argument("--hosts", metavar="A,B,...", help="the machines' names, so that a missing one can be named")
    nodes.add_argument("--wait", type=float, default=30.0, metavar="S", help="seconds to wait for the others (30)")
    nodes.add_argument("--rounds", type=int, default=8, metavar="N", help="rounds of pairs at most (8)")
    nodes.add_argument("--disk", metavar="FOLDER", help="also compare how fast the machines write here")
    return made


def same_machine(options: argparse.Namespace) -> list[str]:
    """The words that made these checks what they are, for a command that runs one of them again."""
    chosen = ["--experiment", options.experiment] if options.experiment else []
    return [*chosen, *(["--quick"] if options.quick else []), *options.overrides]


def check(options: argparse.Namespace) -> None:
    """Refuse what contradicts itself.

    Raises:
        ConfigError: listing the problems.
    """
    found = []
    if options.nodes is None:
        for key in ("rendezvous", "hosts", "disk"):
            if getattr(options, key) is not None:
                found.append(problem(f"--{key}", getattr(options, key), "only with --nodes", "add --nodes"))
        if environment.under_launcher() and environment.world_size() > 1:
            fix = "add --nodes, or start python -m yarn_train.doctor without torchrun: it starts its own ranks"
            found.append(problem("doctor", f"{environment.world_size()} ranks", "one process without --nodes", fix))
        left_out = not_with(options.experiment is not None, options.quick)
        for name in left_out.keys() & set(options.only or []):
            found.append(problem("--only", name, "checks that this command line has", left_out[name]))
        found += unwritable(options.json)
    elif options.experiment or options.only or options.quick or options.overrides:
        fix = "leave --experiment, --only, --quick and option=value to the check of one machine"
        found.append(problem("--nodes", "options of the check of one machine", "its own options", fix))
    if options.overrides and not options.experiment:
        found.append(problem("option=value", options.overrides, "with --experiment", "add --experiment <name>"))
    for key in ("wait", "rounds"):
        if getattr(options, key) <= 0:
            found.append(problem(f"--{key}", getattr(options, key), "> 0", "leave it out"))
    if found:
        raise ConfigError(found)


def composed_options(options: argparse.Namespace) -> dict[str, Any] | None:
    """The experiment's composed options, None without one."""
    if options.experiment is None:
        return None
    known = sorted(file.stem for file in (cli.CONF / "experiment").glob("*.yaml"))
    if options.experiment not in known:
        raise ConfigError(problem("--experiment", options.experiment, " | ".join(known), "choose one of these"))
    composed = cli.compose([f"experiment={options.experiment}", *options.overrides])
    folder = composed["run"]["dir"] or Path("outputs", composed["run"]["name"])
    return {**composed, "run": {**composed["run"], "dir": str(folder)}}


if __name__ == "__main__":
    guard_streams(environment.secrets())
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: the interpreter would wait for a child that hangs in the kernel, which no signal ends
