"""Several runs read together: a sweep, a folder full of runs, or folders given side by side.

One damaged or unfinished run must not hide the others: what cannot be read is a problem with a name, and stays a row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, YarnTrainError, problem
from ..sweep import record
from .collect import Run, collect, is_run
from .differences import differing
from .objective import LOSS, common_metric

NAMED = 3  # folders that a comparison is named by
SWEPT = 6  # options that are taken for axes of runs that no sweep record describes
NO_CAUSE = ("eval", "launch", "plan", "tracking", "profile")  # sections that change no perplexity: no axes of a plot


@dataclass(frozen=True)
class Member:
    """One run of a group.

    Attributes:
        run: what its folder holds; None where that cannot be read or is not there.
        swept: option -> value, of the sweep; without one, of the options that differ within the group.
        status: one of sweep.record.STATUSES, or unknown.
        objective: lower is better; None where it has none.
        job: its record, in a sweep.
        problem: what of it could not be read.
    """

    name: str
    folder: Path
    run: Run | None = None
    swept: dict[str, Any] = field(default_factory=dict)
    status: str = "unknown"
    reason: str | None = None
    objective: float | None = None
    job: record.Job | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Group:
    """Runs that are looked at together.

    Attributes:
        sweep: its record; None for runs that no sweep made.
        metric: what objectives are, such as "perplexity at 8192".
        axes: swept options, in the order of the sweep.
        problems: what could not be read, one line each.
    """

    name: str
    members: tuple[Member, ...]
    sweep: record.Sweep | None = None
    metric: str = "objective"
    axes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def best(self) -> Member | None:
        """The member with the lowest objective."""
        return min(self.ranked(), key=lambda m: m.objective or 0.0, default=None)

    def ranked(self) -> list[Member]:
        """Members with an objective, in the group's order."""
        return [m for m in self.members if m.objective is not None and m.status in ("complete", "unknown")]

    def failed(self) -> list[Member]:
        """Members that did not end well: failed, stopped, or unreadable."""
        return [m for m in self.members if m.status in ("failed", "stopped") or m.problem]

    def missing(self) -> int:
        """Jobs of a sweep that never began."""
        return max(0, (self.sweep.total or 0) - len(self.members)) if self.sweep else 0


def is_group(folder: Path) -> bool:
    """Whether this is a sweep's folder, or one that holds run folders and is none."""
    return (folder / record.FILE).is_file() or (not is_run(folder) and bool(_runs_in(folder)))


def collect_group(folder: str | Path) -> Group:
    """Read a sweep's folder, or a folder full of runs.

    Raises:
        DataError: it holds neither a sweep nor a run.
    """
    folder = Path(folder)
    if not is_group(folder):
        fix = "give the folder of a sweep or one that holds run folders"
        raise DataError(problem(str(folder), "no run in it", "a sweep or a folder of runs", fix))
    problems: list[str] = []
    sweep = _tried(lambda: record.read_sweep(folder), problems)
    found = []
    for path in sorted((folder / record.JOBS).glob("[!.]*.json")):
        job = _tried(lambda path=path: record.read_job(folder, path.stem), problems)
        found.append(_job(folder / path.stem, job) if job else _unrecorded(folder / path.stem, problems[-1]))
    known = {member.name for member in found}
    found += [_unrecorded(path) for path in _runs_in(folder) if path.name not in known]
    found.sort(key=lambda m: (m.job.number if m.job else 10**9, m.name))
    return _group(folder.resolve().name, found, sweep, problems)


def collect_several(folders: Sequence[str | Path]) -> Group:
    """Read run folders, sweeps and folders of runs, as one group of all their runs.

    Raises:
        DataError: none of them can be read.
    """
    members: list[Member] = []
    problems: list[str] = []
    paths = {Path(folder).resolve(): Path(folder) for folder in folders}  # each once
    for path, name in zip(paths.values(), distinct(list(paths)), strict=True):
        if is_run(path) or not is_group(path):
            members.append(replace(_unrecorded(path), name=name))
        else:
            group = collect_group(path)
            members += [replace(m, name=f"{name}/{m.name}") for m in group.members]
            problems += [line for line in group.problems if all(line != m.problem for m in group.members)]
    if all(member.run is None for member in members):
        raise DataError("\n".join(member.problem or "" for member in members))
    if len({m.job.metric for m in members if m.job} | {None for m in members if not m.job}) > 1:
        members = [replace(member, objective=None) for member in members]  # not the same thing was measured
    names = list(dict.fromkeys(m.name.partition("/")[0] for m in members))
    return _group(" | ".join(names) if len(names) <= NAMED else f"{len(members)} runs", members, None, problems)


def distinct(paths: Sequence[Path]) -> list[str]:
    """Each path by as few of its last names as tell it from the others; the same path twice has the same name."""
    names = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        sizes = range(1, len(path.parts) + 1)
        n = next((n for n in sizes if all(path.parts[-n:] != other[-n:] for other in others)), len(path.parts))
        names.append("/".join(path.parts[-n:]))
    return names


def _group(name: str, members: list[Member], sweep: record.Sweep | None, problems: Sequence[str]) -> Group:
    lines = [*problems, *(m.problem for m in members if m.problem)]
    told = {m.job.metric for m in members if m.job and m.objective is not None and m.status != "pruned"}
    metric = told.pop() if len(told) == 1 else None  # jobs that were measured by different things are measured anew
    members = [m if m.job and m.job.metric == metric else replace(m, objective=None) for m in members]
    if metric is None:
        metric, values = common_metric([m.run for m in members])
        ended = [m.status == "complete" or (m.status == "unknown" and metric != LOSS) for m in members]
        values = [value if end else None for value, end in zip(values, ended, strict=True)]  # half a run is no result
        members = [replace(m, objective=value) for m, value in zip(members, values, strict=True)]
    axes = tuple(sweep.axes) if sweep else ()
    if not axes:
        axes = tuple(dict.fromkeys(key for m in members for key in m.swept))
    if not axes:
        runs = [m.run for m in members]
        differ = differing([run.config if run else None for run in runs])
        axes = tuple(key for key in differ if key.partition(".")[0] not in NO_CAUSE)[:SWEPT]
        members = [
            replace(m, swept={key: differ[key][i] for key in axes} if m.run else {}) for i, m in enumerate(members)
        ]
    return Group(name, tuple(members), sweep, metric, axes, tuple(dict.fromkeys(lines)))


def _job(folder: Path, job: record.Job) -> Member:
    if not isinstance(job.objective, int | float) or job.objective != job.objective:
        job = replace(job, objective=None)
    ended = job.status, job.reason, job.objective
    member = Member(folder.name, folder, None, dict(job.swept), *ended, job)
    if not is_run(folder):  # it failed before it had one
        return member
    try:
        return replace(member, run=collect(folder))
    except (YarnTrainError, OSError) as error:
        return replace(member, problem=str(error))


def _unrecorded(folder: Path, damage: str | None = None) -> Member:
    try:
        run = collect(folder)
    except (YarnTrainError, OSError) as error:
        return Member(folder.resolve().name, folder, problem=damage or str(error))
    if not run.trained_here:
        return Member(folder.resolve().name, folder, run, status="complete", problem=damage)
    said = run.info.get("exit_reason")
    status = "complete" if said == "complete" else "failed" if str(said).startswith("failed") else "stopped"
    if not said:
        status, said = "unknown", "run.json names no end: it runs, or was killed"
    reason = None if status == "complete" else str(said)
    return Member(folder.resolve().name, folder, run, status=status, reason=reason, problem=damage)


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as found:
        return sorted(path for entry in found if entry.is_dir() and is_run(path := Path(entry.path)))


def _tried(read: Any, problems: list[str]) -> Any:
    try:
        return read()
    except YarnTrainError as error:
        problems.append(str(error))
        return None
