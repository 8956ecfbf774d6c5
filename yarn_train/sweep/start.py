"""Before the first job of a sweep: what it is, whether it can be what is in its folder, and its record."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigError, problem
from .names import job_name
from .record import JOBS, Sweep, read_sweep, write

GRID_MOST = 10_000  # jobs


@dataclass(frozen=True)
class Axis:
    """A swept option: its values, or its distribution in words where they are not a list.

    Attributes:
        texts: how the values are written on a command line.
    """

    key: str
    values: tuple[Any, ...] | None
    words: str
    texts: tuple[str, ...] = ()


def begin(folder: Path, sweep: Sweep, axes: Sequence[Axis]) -> Sweep:
    """Check a sweep against its folder and write its record.

    Args:
        sweep: as the command line has it; its axes, total and start are filled in here.

    Raises:
        ConfigError: two jobs of one name, too many jobs, or a folder with another sweep or a run.
        DataError: the folder's record is damaged.
    """
    values = {axis.key: list(axis.values) if axis.values is not None else axis.words for axis in axes}
    total = None if sweep.sweeper == "optuna" else len(check_names(axes))
    earlier = read_sweep(folder)
    if earlier is None and (folder / "run.json").exists():
        fix = "choose another run.name"
        raise ConfigError(problem("run.name", sweep.name, f"a name of its own: {folder} is the folder of a run", fix))
    if earlier is not None and _has_begun(folder, earlier):
        _check_same(folder, earlier, sweep, values)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    begun = replace(sweep, axes=values, total=total, started=earlier.started if earlier else now, ended=None)
    write(folder, begun)
    return begun


def end(folder: Path) -> None:
    """Note when a sweep ended."""
    sweep = read_sweep(folder)
    if sweep is not None:
        write(folder, replace(sweep, ended=datetime.now(UTC).isoformat(timespec="seconds")))


def check_names(axes: Sequence[Axis]) -> list[str]:
    """Names of the jobs of a grid.

    Raises:
        ConfigError: two of them would share a folder, an axis has no list of values, or there are too many.
    """
    total = 1
    for axis in axes:
        if axis.values is None:
            fix = "list values, such as 1,2,4, or choose hydra/sweeper=optuna"
            raise ConfigError(problem(axis.key, axis.words, "values of a grid", fix))
        total *= len(axis.values)
    if total > GRID_MOST:
        raise ConfigError(problem("-m", f"{total:,} jobs", f"at most {GRID_MOST:,}", "sweep fewer values at once"))
    keys = [axis.key for axis in axes]
    combined = itertools.product(*(axis.values or () for axis in axes))
    names = Counter(job_name(dict(zip(keys, values, strict=True))) for values in combined)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        got = f"two jobs named {twice[0]}"
        raise ConfigError(problem("-m", got, "every value of an option once", "leave out what is there twice"))
    return list(names)


def _has_begun(folder: Path, sweep: Sweep) -> bool:
    """Whether jobs of it may have begun; else nothing is lost when another takes its place."""
    return sweep.launcher == "submitit_slurm" or any((folder / JOBS).glob("*.json"))  # its jobs may wait in a queue


def _check_same(folder: Path, earlier: Sweep, sweep: Sweep, axes: Mapping[str, Any]) -> None:
    """A folder is one sweep: jobs compare because they differ in the swept options only."""
    problems = []
    fix = "choose another run.name, or go on with what the sweep began with"
    if earlier.axes.keys() != axes.keys():
        was = ", ".join(earlier.axes) or "nothing"
        problems.append(problem("-m", f"a sweep over {', '.join(axes) or 'nothing'}", f"{was}, as {folder} has", fix))
    now, then = _new(sweep.common, earlier.common), _new(earlier.common, sweep.common)
    if now or then:
        got = " ".join(now) or f"without {' '.join(then)}"
        allowed = " ".join(earlier.common) or "no option beside the swept ones"
        problems.append(problem("command line", got, f"{allowed}, as {folder} has", fix))
    if problems:
        raise ConfigError(problems)


def _new(words: Sequence[str], others: Sequence[str]) -> list[str]:
    known = {word.lstrip("+") for word in others}
    return [word for word in words if word.lstrip("+") not in known]
