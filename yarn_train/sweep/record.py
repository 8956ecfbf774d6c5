"""What a sweep writes down: ``sweep.json``, and ``jobs/<name>.json`` for every job, beside the jobs' run folders.

A record is one file per job, written by the process that looks after the job and by nobody else, so that jobs may run
at once on several machines. Reports read these; nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, problem

FILE = "sweep.json"
JOBS = "jobs"
# running: it was, when this was written; stopped: somebody asked; pruned: the study found it hopeless
STATUSES = ("running", "complete", "pruned", "failed", "stopped")


@dataclass(frozen=True)
class Job:
    """One job of a sweep and how it stands.

    Attributes:
        name: of its run folder, ``<sweep>/<name>``.
        number: its place in the sweep, from 0.
        swept: option -> the value it has in this job.
        overrides: the words that make this job, without those of Hydra.
        options_sha256: of the composed options that decide its result: a finished job counts only for these.
        status: one of STATUSES.
        reason: why it did not end well, in one line.
        exit_code: of its process, negative for a signal; None while it runs.
        metric: what `objective` is, such as "perplexity at 8192"; lower is better.
        started, ended: ISO 8601 in UTC.
        seconds: from its beginning to its end, of the last attempt.
        overhead_seconds: what of `seconds` was neither data preparation, steps, checkpoints nor evaluation.
        devices: GPUs it was given, by index or UUID; empty on a CPU.
        attempt: how often it was started, from 1.
    """

    name: str
    number: int
    swept: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    options_sha256: str = ""
    status: str = "running"
    reason: str | None = None
    exit_code: int | None = None
    metric: str | None = None
    objective: float | None = None
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    overhead_seconds: float | None = None
    devices: list[str] = field(default_factory=list)
    host: str = ""
    attempt: int = 1


@dataclass(frozen=True)
class Sweep:
    """A sweep as a whole.

    Attributes:
        name: of its folder.
        command: what was typed, secrets blotted out.
        sweeper, launcher: Hydra's names, such as grid, optuna, basic, joblib, submitit_slurm.
        axes: option -> its values (a grid's) or its distribution in words.
        common: words that all jobs share.
        total: jobs that it will have; None where a study decides.
    """

    name: str
    command: str
    sweeper: str
    launcher: str
    axes: dict[str, Any]
    common: list[str] = field(default_factory=list)
    total: int | None = None
    started: str | None = None
    ended: str | None = None


def sweep_of(run: Path) -> Path | None:
    """The sweep's folder that a run folder is a job of, None where it is no job."""
    above = run.absolute().parent
    return above if (above / FILE).is_file() else None


def write(folder: Path, record: Sweep | Job) -> None:
    """Write a record into the sweep's folder: aside, then renamed."""
    path = folder / FILE if isinstance(record, Sweep) else folder / JOBS / f"{record.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    aside.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_sweep(folder: Path) -> Sweep | None:
    """The sweep's own record, None where the folder holds none.

    Raises:
        DataError: it is not what this program writes.
    """
    path = folder / FILE
    return _read(path, Sweep) if path.is_file() else None


def read_job(folder: Path, name: str) -> Job | None:
    """A job's record, None where it never began; DataError as :func:`read_sweep`."""
    path = folder / JOBS / f"{name}.json"
    return _read(path, Job) if path.is_file() else None


def read_jobs(folder: Path) -> tuple[list[Job], list[str]]:
    """(All jobs that ever began, by their numbers; what is wrong with records that cannot be read)."""
    found, damaged = [], []
    for path in sorted((folder / JOBS).glob("[!.]*.json")):
        try:
            found.append(_read(path, Job))
        except DataError as error:
            damaged.append(str(error))
    return sorted(found, key=lambda job: (job.number, job.name)), damaged


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        names = {f.name for f in dataclasses.fields(kind)}
        return kind(**{key: given for key, given in value.items() if key in names})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        got = " ".join(str(error).split())
        fix = "move it away; that job then runs again" if kind is Job else "move it away"
        raise DataError(problem(str(path), got, f"the record of a {kind.__name__.lower()}", fix)) from error
