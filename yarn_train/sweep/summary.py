"""The end of a sweep: its report, how many jobs ended how, the command that goes on, the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from .record import Job, read_jobs
from .start import end

Say = Callable[[str], None]
FAILED = 1  # exit code of a sweep with a job that failed
STOPPED = 75  # of one that has jobs left: the same command goes on


def finish(folder: Path, names: Collection[str] | None, command: str, show: Callable[[Path], None], say: Say) -> int:
    """Report a sweep and print how it ended; returns its exit code, not counting that somebody stopped it.

    Args:
        names: of the jobs that this start asked for, where earlier ones may have left others; None: of all.
        command: what starts the sweep again.
        show: writes and prints a report of the folder.
    """
    end(folder)
    jobs, damaged = read_jobs(folder)
    jobs = [job for job in jobs if names is None or job.name in names]
    reported = bool(jobs) and _report(folder, show, say)
    for line in lines(jobs, len(names) if names is not None else len(jobs), folder, command, reported):
        say(line)
    for line in damaged:
        say(f"error: {line}")
    if damaged or any(job.status == "failed" for job in jobs):
        return FAILED
    done = sum(job.status in ("complete", "pruned") for job in jobs)
    return 0 if done == (len(jobs) if names is None else len(names)) else STOPPED


def lines(jobs: list[Job], total: int, folder: Path, command: str, reported: bool) -> list[str]:
    """What is said at the end; of failures, where the report did not list them."""
    counts = Counter(job.status for job in jobs)
    told = [f"{counts[status]} {status}" for status in ("complete", "pruned", "failed", "stopped") if counts[status]]
    waiting = total - len(jobs) + counts["running"]
    told += [f"{waiting} not run"] if waiting > 0 else []
    found = [f"sweep {folder}: {', '.join(told) or 'no job has begun'}"]
    if not reported:
        found += [f"  {job.name} failed: {job.reason}" for job in jobs if job.status == "failed"]
    if waiting > 0 or counts["failed"] or counts["stopped"]:
        found.append(f"the same command goes on with what is left: {command}")
    return found


def _report(folder: Path, show: Callable[[Path], None], say: Say) -> bool:
    try:
        show(folder)
        return True
    except Exception as error:
        # whatever is wrong with a picture, the jobs' results are there
        say(f"no report ({type(error).__name__}: {error}); python -m yarn_train.report {folder} tries again")
        return False
