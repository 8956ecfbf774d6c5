"""A study's trials, batch by batch: asked for, run as jobs, told how they ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .asked import asked
from .record import read_job
from .settings import Settings
from .space import Axis, count, grid, text
from .study import Say, Study, Trial

MISSES = 50  # values in a row that were tried before, until the study is thought to have nothing new
MANY = 10_000  # combinations that are not looked through

Values = dict[str, str]
Launch = Callable[[Sequence[Values], int], None]


def run_study(
    folder: Path,
    settings: Settings,
    axes: Mapping[str, Axis],
    name_of: Callable[[Values], str],
    launch: Launch,
    say: Say,
) -> None:
    """Run jobs until the study has ``n_trials`` results, counting those of earlier starts, or all that can be tried.

    A job that fails takes one of the places left, so that a sweep whose jobs all fail ends; the next start tries it
    again.

    Args:
        folder: the sweep's.
        name_of: the job's folder name, from option -> text.
        launch: runs a batch, given how many jobs there were before it; how they end is read from their records.
        say: called with a line about what is not run.

    Raises:
        ConfigError, DataError: as :class:`Study`.
    """
    study = Study(folder, settings, axes)
    try:
        tried: set[str] = set()
        left = settings.n_trials - len(study.finished())
        if left <= 0:
            say(f"the study has its {settings.n_trials} trials; hydra.sweeper.n_trials=... asks for more")
        while left > 0 and not _all_tried(axes, study.finished() | tried):
            begun = len(study.begun())
            batch = _batch(study, axes, min(settings.n_jobs, left), name_of, tried)
            if not batch:
                say(f"the study finds nothing that it has not tried; {left} of its trials are left")
                return
            left -= len(batch)
            tried |= batch.keys()
            launch([trial.values for trial in batch.values()], begun)
            stopped = asked(folder)
            for name, trial in batch.items():
                job = read_job(folder, name)
                if job is not None or not stopped:  # those that did not begin stay open
                    study.tell(trial, job)
            if stopped:
                return
    finally:
        study.close()


def _batch(
    study: Study, axes: Mapping[str, Axis], size: int, name_of: Callable[[Values], str], tried: set[str]
) -> dict[str, Trial]:
    """Job's name -> trial, of jobs that differ from each other and from all that were run.

    A sampler that only wants what it knows already gets the first combination that nobody tried, where they can be
    counted.
    """
    batch: dict[str, Trial] = {}
    misses = 0
    while len(batch) < size and misses <= MISSES:
        chosen = _untried(axes, name_of, study.finished() | tried | batch.keys()) if misses == MISSES else None
        trial = study.ask(chosen)
        name = name_of(trial.values)
        if study.known(trial, name):
            misses += 1
        elif name in batch or name in tried:
            study.drop(trial)
            misses += 1
        else:
            study.begin(trial, name)
            batch[name] = trial
            misses = 0
    return batch


def _untried(axes: Mapping[str, Axis], name_of: Callable[[Values], str], names: set[str]) -> dict[str, Any] | None:
    if (count(axes) or MANY) >= MANY:
        return None
    texts = ((values, {key: text(axis, values[key]) for key, axis in axes.items()}) for values in grid(axes) or [])
    return next((values for values, words in texts if name_of(words) not in names), None)


def _all_tried(axes: Mapping[str, Axis], names: set[str]) -> bool:
    there = count(axes)
    return there is not None and len(names) >= there
