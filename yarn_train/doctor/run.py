"""Runs checks side by side, each with a time limit, all of them within one budget. Never imports torch."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from ..dist.environment import usable_cores
from .activity import PAUSE, Activity, activity
from .child import Child, ChildError, Hung
from .finding import FAIL, WARN, Finding

# Imported once, before any check: side by side in every child it would be paid several times on few cores.
PRELOADED = ["torch", *(f"{__package__}.checks.{name}" for name in ("compute", "kernels", "network", "need"))]
BUDGET = 28.0  # seconds for all checks: with the interpreter's start and exit the doctor stays below 30


@dataclass(frozen=True)
class Check:
    """A function that returns findings.

    Attributes:
        function: ``module:function``.
        limit: seconds.
        phase: checks of one phase run side by side, phases one after another: what measures speed is left alone.
        arguments: keyword arguments of the function.
    """

    name: str
    function: str
    limit: float
    phase: int
    arguments: dict[str, Any] = field(default_factory=dict)


def run_checks(
    checks: Sequence[Check],
    budget: float = BUDGET,
    show: Callable[[Finding], None] = lambda finding: None,
    words: Sequence[str] = (),
) -> list[Finding]:
    """All findings, in the order of the checks; each is shown as soon as those before it are there.

    Args:
        budget: seconds; a check that they end before its own limit does is reported as not finished or not run.
        words: of the command line that chose these checks: what shows one of them alone has them too.
    """
    clock = Clock(budget, time.monotonic() + budget, words)
    found: list[Finding] = []
    for phase in sorted({check.phase for check in checks}):
        for finding in _phase([check for check in checks if check.phase == phase], clock):
            found.append(finding)
            show(finding)
    return found


@dataclass(frozen=True)
class Clock:
    """The time for all checks and its end, in seconds, and how one is run alone."""

    budget: float
    end: float
    words: Sequence[str]

    def left(self) -> float:
        """Seconds for an answer: a look at what a silent child does takes some of the budget too."""
        return self.end - time.monotonic() - PAUSE

    def alone(self, check: Check) -> str:
        """What to type."""
        command = shlex.join(["python", "-m", "yarn_train.doctor", "--only", check.name, *self.words])
        return f"{command}  # this one alone"

    def too_little(self, check: Check, had: float) -> Finding:
        """For a check that got less than its limit."""
        figure = f"not finished: {had:.0f} s were left of {self.budget:.0f}" if had > 0 else "not run: no time left"
        return Finding(WARN, check.name, figure, "the other checks took the whole time", self.alone(check))


def _phase(checks: Sequence[Check], clock: Clock) -> list[Finding]:
    if clock.left() <= 0:
        return [clock.too_little(check, 0.0) for check in checks]
    results: dict[str, list[Finding]] = {}
    children: dict[str, Child] = {}
    had = clock.left()

    def run(check: Check) -> None:
        children[check.name] = child = Child(PRELOADED)
        results[check.name] = _result(check, child, clock)

    # Threads, because already the start of a child can hang: it waits until torch is imported.
    threads = {c.name: threading.Thread(target=run, args=(c,), daemon=True) for c in checks}
    for thread in threads.values():
        thread.start()
    look = cache(partial(activity, os.getpid()))  # once: all of them wait for the same
    found = []
    try:
        for check in checks:
            threads[check.name].join(
                max(0.0, clock.end - time.monotonic())
                + (0.0 if time.monotonic() > clock.end + 2 * PAUSE else 2 * PAUSE)
            )
            started = check.name in children
            found += results.get(check.name) or [
                clock.too_little(check, had) if started else _no_child(check, had, look())
            ]
    finally:
        for child in list(children.values()):
            child.kill()
    return found


def _result(check: Check, child: Child, clock: Clock) -> list[Finding]:
    limit = min(check.limit, clock.left())
    try:
        return list(child.call(check.function, limit, **check.arguments))
    except Hung as error:
        if limit < check.limit:
            return [clock.too_little(check, limit)]
        if error.seen.busy:
            figure = f"still computing after {limit:.0f} s; {_load()}"
            means = "nothing hangs, but this machine is busy or slow: a run would be as slow"
            return [Finding(WARN, check.name, figure, means, f"top; then {clock.alone(check)}")]
        means = "what it looks at may be stuck: a driver, a network file system or a name server"
        figure = f"the check hangs: {error}; {error.seen.text}"
        return [Finding(FAIL, check.name, figure, means, clock.alone(check))]
    except ChildError as error:
        figure = f"the check crashed: {error}"
        return [Finding(FAIL, check.name, figure, "a run is likely to do the same", clock.alone(check))]
    finally:
        child.kill()


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {usable_cores()} cores"


def _no_child(check: Check, had: float, seen: Activity) -> Finding:
    """No process could be started; what they all wait for is the import of torch in the first of them."""
    figure, fix = f"no process started within {had:.0f} s", "time python -c 'import torch'"
    if seen.busy:
        means = "torch is still being imported; a run waits as long on every rank"
        return Finding(WARN, check.name, f"{figure}; {_load()}", means, fix)
    means = "nothing that imports torch starts, and no run does; its files may be on a file system that hangs"
    return Finding(FAIL, check.name, f"{figure}; {seen.text}", means, fix)
