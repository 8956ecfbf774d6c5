"""Looks after one job of a sweep: starts it unless it is done, waits, writes down how it ended. Never trains itself.

A job that fails is a record, not an exception: the rest of the sweep goes on.
"""

from __future__ import annotations

import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from .. import config as schema
from ..dist import environment
from ..errors import DataError, YarnTrainError
from ..redact import redacted, redacted_command
from . import child
from .asked import asked
from .decisive import options_sha256
from .follow import Follower
from .gpus import present
from .locks import alone, turn
from .outcome import outcome, useful_seconds
from .placement import GivenUp, Placement, placed
from .record import JOBS, Job, read_job, write
from .study import pruner

INTERVAL = 0.1  # seconds between two looks at a job
LOG = "job.log"
GRACE = 100.0  # seconds that a job has to save when a scheduler ends this process
DONE = ("complete", "pruned")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """A job that is to be run.

    Attributes:
        sweep: the sweep's folder.
        name: of the job and its folder.
        number: its place in the sweep, from 0.
        total: jobs of the sweep; None where a study decides.
        swept: option -> its value in this job.
        overrides: the words that make the job.
        script: what Python is given to run the program.
        words: the command line of the job's process.
        options: the composed options.
        at_once: jobs that run on this machine at once; 0 where a scheduler decides.
        live: whether this process may draw a line that is rewritten.
    """

    sweep: Path
    name: str
    number: int
    total: int | None
    swept: dict[str, Any]
    overrides: list[str]
    script: list[str]
    words: list[str]
    options: dict[str, Any]
    at_once: int = 1
    live: bool = False

    @property
    def folder(self) -> Path:
        """The job's run folder."""
        return self.sweep / self.name

    @property
    def label(self) -> str:
        """What lines about the job begin with."""
        return f"[{self.number + 1}{f'/{self.total}' if self.total else ''}] {self.name}"


def look_after(order: Order, say: Say) -> float:
    """Run a job to its end, unless its record says that it ended with these options; returns its objective or NaN.

    Args:
        say: prints one line.

    Raises:
        KeyboardInterrupt, SystemExit: this process was told to leave; the job was stopped first.
    """
    try:
        return _look_after(order, say)
    except DataError as error:  # its record is damaged, and stays as it is
        say(f"{order.label}  not run: {error}")
    except YarnTrainError as error:
        reason = redacted(" ".join(str(error).split()), environment.secrets())
        failed = replace(_job(order, options_sha256(order.options)), status="failed", reason=reason, ended=_now())
        write(order.sweep, replace(failed, exit_code=error.exit_code))
        say(f"{order.label}  failed  {reason}")
    return math.nan


def _look_after(order: Order, say: Say) -> float:
    digest = options_sha256(order.options)
    with alone(order.sweep / JOBS, order.name) as mine:
        if not mine:
            say(f"{order.label}  another process runs it; left to it")
            return math.nan
        earlier = read_job(order.sweep, order.name)
        if earlier and earlier.status in DONE and earlier.options_sha256 == digest:
            same = _compared_anew(order, earlier)
            say(f"{order.label}  {same.status} already{_told(same)}")
            return math.nan if same.objective is None else same.objective
        with turn(order.sweep / JOBS, order.at_once, lambda: asked(order.sweep)), _placed(order, say) as place:
            if place is None or asked(order.sweep):
                return math.nan
            job = _begun(order, earlier, digest, place)
            say(f"{order.label}  {'starts' if job.attempt == 1 else f'starts, attempt {job.attempt}'}{_where(place)}")
            ended = _run(order, job, place, say)
    say(f"{order.label}  {ended.status}{_told(ended)}")
    return math.nan if ended.objective is None else ended.objective


def _compared_anew(order: Order, job: Job) -> Job:
    """The record of a finished job, by what the sweep compares its jobs by now."""
    how = (
        outcome(order.folder, 0, "", schema.examine(order.options)[0].sweep.objective)
        if job.status == "complete"
        else None
    )
    if how is None or (how.metric, how.objective) == (job.metric, job.objective) or how.status == "stopped":
        return job
    anew = replace(job, status=how.status, reason=how.reason, metric=how.metric, objective=how.objective)
    write(order.sweep, anew)
    return anew


@contextmanager
def _placed(order: Order, say: Say) -> Iterator[Placement | None]:
    """Where the job runs; None where the sweep was asked to stop before there was room."""
    workers = _workers(order.options)
    try:
        with placed(workers, max(1, order.at_once), say, lambda: bool(asked(order.sweep))) as place:
            yield place
    except GivenUp:
        yield None


def _begun(order: Order, earlier: Job | None, digest: str, place: Placement) -> Job:
    job = replace(_job(order, digest), devices=list(place.devices), attempt=earlier.attempt + 1 if earlier else 1)
    write(order.sweep, job)
    return job


def _job(order: Order, digest: str) -> Job:
    return Job(
        name=order.name,
        number=order.number,
        swept=order.swept,
        overrides=redacted_command(order.overrides, environment.secrets()),
        options_sha256=digest,
        started=_now(),
        host=platform.node(),
    )


def _run(order: Order, job: Job, place: Placement, say: Say) -> Job:
    order.folder.mkdir(parents=True, exist_ok=True)
    log = order.folder / LOG
    printed_before = log.stat().st_size if log.exists() else 0
    began, clock = time.time(), time.monotonic()
    process = child.start(order.script, order.words, log, place.environment)
    told = None
    try:
        with _saved_first(process):
            told = _wait(order, process, say)
    finally:
        if _end(process):
            told = told or "ended"
        seconds = time.monotonic() - clock
        code = process.exitcode if process.exitcode is not None else -signal.SIGKILL
        printed = _tail(log, printed_before)
        how = outcome(order.folder, code, printed, schema.examine(order.options)[0].sweep.objective, told)
        ended = replace(
            job,
            status=how.status,
            reason=how.reason,
            exit_code=code,
            metric=how.metric,
            objective=how.objective,
            ended=_now(),
            seconds=round(seconds, 3),
            overhead_seconds=round(max(0.0, seconds - useful_seconds(order.folder, began)), 3),
        )
        write(order.sweep, ended)
        with suppress(OSError):
            order.folder.rmdir()  # where it holds nothing, not even a log
    return ended


def _wait(order: Order, process: BaseProcess, say: Say) -> str | None:
    """Until the job has ended; why it was told to, if it was."""
    judge = pruner(order.sweep, order.name, say) if schema.examine(order.options)[0].sweep.prune else None
    told: str | None = None
    with Follower(order.folder, order.label, order.live) as follower:
        while process.exitcode is None:
            process.join(INTERVAL)
            rows = follower.new_rows()
            if told is None and judge and any(judge.hopeless(step, loss) for step, loss in rows):
                told = _tell(process, "pruned", signal.SIGTERM)
            if told is None and (number := asked(order.sweep)):
                told = _tell(process, "stopped", number)
    return told


def _tell(process: BaseProcess, why: str, number: int) -> str | None:
    """Ask a job to stop; it saves first. None where it has ended by itself."""
    if process.exitcode is not None or process.pid is None:
        return None
    os.kill(process.pid, number)
    return why


def _end(process: BaseProcess) -> bool:
    """For a way out that the loop did not choose: nothing may go on training that nobody looks after."""
    if process.exitcode is not None or process.pid is None:
        return False
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(10.0)
    return True


@contextmanager
def _saved_first(process: BaseProcess) -> Iterator[None]:
    """Inside, the job saves before this process is ended by the signal with which submitit begins a job anew."""
    before = signal.getsignal(signal.SIGUSR2) if threading.current_thread() is threading.main_thread() else None

    def on_signal(number: int, frame: FrameType | None) -> None:
        _tell(process, "stopped", signal.SIGUSR1)
        process.join(GRACE)
        if callable(before):
            before(number, frame)

    if not callable(before):
        yield
        return
    signal.signal(signal.SIGUSR2, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


def _tail(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(begin)
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _workers(options: Mapping[str, Any]) -> int:
    """GPUs that the job needs on this machine, where there are any."""
    number = options["launch"]["nproc_per_node"]
    if number == "gpu":
        return len(present())
    return number if isinstance(number, int) else 1


def _told(job: Job) -> str:
    parts = [] if job.objective is None else [f"{job.metric} {job.objective:.5g}"]
    parts += (
        [] if job.seconds is None else [f"{job.seconds:.0f} s, of these {job.overhead_seconds or 0:.1f} s overhead"]
    )
    parts += [job.reason] if job.reason else []
    return "".join(f"  {part}" for part in parts)


def _where(place: Placement) -> str:
    return f" on GPU {','.join(place.devices)}" if place.devices else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
