"""A study by Optuna: which values to try next, and which jobs are hopeless.

The sweeper's process asks and tells. The process of each job reports its losses to the same database, through
:func:`pruner`. What a study knows of a job is its folder's name; how jobs ended is in the sweep's records.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, TrainingDiverged, problem
from .pruner import Pruner
from .record import Job
from .settings import HOW, Settings, hold, leave
from .space import Axis, Choices, grid, in_words, text

if TYPE_CHECKING:
    import optuna

JOB, AGAIN = "job", "queued again"  # what is noted with a trial
METRIC = "compared by"  # and with the study
AXES = "axes"  # and with the study
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """Values to try: option -> its text on a command line."""

    number: int
    values: dict[str, str]


class Study:
    """The study of a sweep, held by one process at a time."""

    def __init__(self, folder: Path, settings: Settings, axes: Mapping[str, Axis]):
        """Open or begin the study of a sweep; trials that a dead process left are queued again, so are failed ones.

        Args:
            folder: the sweep's, which exists.
            axes: option -> what may be chosen.

        Raises:
            ConfigError: wrong settings, other axes than the study began with, or a sweep that runs.
            DataError: the database cannot be read.
        """
        check(settings, axes)
        self._parts = _optuna_parts()
        self._axes, self._settings = dict(axes), settings
        self._asked: dict[int, optuna.Trial] = {}
        self._lock = hold(folder)
        try:
            self._study: optuna.Study = self._parts.opened(*leave(folder, settings), create=True)
            self._check_same()
            self._queue_again()
            if settings.sampler == "grid":
                for values in grid(axes) or []:
                    self._study.enqueue_trial(values, skip_if_exists=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process go on with the study."""
        os.close(self._lock)

    def finished(self) -> set[str]:
        """Names of the jobs whose results count."""
        return {t.user_attrs[JOB] for t in self._trials("COMPLETE", "PRUNED") if JOB in t.user_attrs}

    def begun(self) -> set[str]:
        """Names of all jobs that were ever begun."""
        return {t.user_attrs[JOB] for t in self._trials() if JOB in t.user_attrs}

    def ask(self, values: Mapping[str, Any] | None = None) -> Trial:
        """What to try next; `values` where somebody else chose them."""
        if values is not None:
            self._study.enqueue_trial(dict(values))
        distributions = {key: self._parts.distribution(axis) for key, axis in self._axes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(distributions)
        self._asked[trial.number] = trial
        return Trial(trial.number, {key: text(axis, trial.params[key]) for key, axis in self._axes.items()})

    def begin(self, trial: Trial, job: str) -> None:
        """Note which job the trial is, before the job starts."""
        self._asked[trial.number].set_user_attr(JOB, job)

    def known(self, trial: Trial, job: str) -> bool:
        """Whether an earlier trial was the same job; then this one is told the same and need not be run."""
        same = [t for t in self._trials("COMPLETE", "PRUNED") if t.user_attrs.get(JOB) == job]
        if same and same[-1].state.name == "COMPLETE":
            self._study.tell(trial.number, same[-1].value)
        elif same:
            self._end(trial, "PRUNED")
        return bool(same)

    def drop(self, trial: Trial) -> None:
        """A trial that will not be run."""
        self._end(trial, "FAIL")

    def tell(self, trial: Trial, job: Job | None) -> None:
        """Tell the study how a trial's job ended, by its record.

        A job that diverged is as bad as one that was pruned: the same values would end the same way. One that was asked
        to stop stays open, and the next start goes on with it. Numbers of another metric than the first one's are none.
        """
        if job is not None and job.status == "stopped":
            return
        if job is not None and job.status == "complete" and job.objective is not None and math.isfinite(job.objective):
            metric = self._study.user_attrs.get(METRIC, job.metric)
            if metric == job.metric:
                self._study.set_user_attr(METRIC, metric)
                self._study.tell(trial.number, job.objective)
                return
        lost = job is not None and (job.status == "pruned" or job.exit_code == TrainingDiverged.exit_code)
        self._end(trial, "PRUNED" if lost else "FAIL")

    def _end(self, trial: Trial, state: str) -> None:
        self._study.tell(trial.number, state=self._parts.STATES[state])

    def _trials(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if not states or t.state.name in states]

    def _queue_again(self) -> None:
        left = {trial.number for trial in self._trials("RUNNING")}
        for number in left:  # nobody else holds the study, so whoever ran it is gone
            self._study.tell(number, state=self._parts.STATES["FAIL"])
        done, queued = self.finished(), [t.user_attrs.get(JOB) for t in self._trials("WAITING")]
        for trial in self._trials("FAIL"):
            job = trial.user_attrs.get(JOB)
            if (job is None and trial.number in left) or (job is not None and job not in done and job not in queued):
                noted = {AGAIN: trial.number} if job is None else {AGAIN: trial.number, JOB: job}
                self._study.enqueue_trial(trial.params, user_attrs=noted)
                queued.append(job)

    def _check_same(self) -> None:
        """Only the ends of intervals may change between the starts of a study."""
        now = [f"{k}={in_words(a) if isinstance(a, Choices) else 'interval'}" for k, a in self._axes.items()]
        then = self._study.user_attrs.setdefault(AXES, now)
        if sorted(then) != sorted(now):
            fix = "name another sweep (run.name=...), or go on with what this one began with"
            allowed = f"{' '.join(then)}, as the study has it"
            raise ConfigError(problem("swept options", " ".join(now), allowed, fix))
        self._study.set_user_attr(AXES, now)


def pruner(folder: Path, name: str, say: Say = print) -> Pruner | None:
    """The pruner of a job that a study began; None where no study prunes it. Never raises.

    Args:
        folder: the sweep's.
        name: of the job.
        say: called with one line where the study cannot be asked.
    """
    if not (folder / HOW).is_file():
        return None
    try:
        how = json.loads((folder / HOW).read_text(encoding="utf-8"))
        settings = Settings(**how["settings"])
        if settings.pruner == "none":
            return None
        parts = _optuna_parts()
        study = parts.opened(how["url"], settings, create=False)
        mine = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(JOB) == name]
        running = [t for t in mine if t.state.name == "RUNNING"]
        return Pruner(parts.live(study, running[-1]), settings.prune_every, say) if running else None
    except Exception as error:
        say(f"the sweep's study cannot be asked ({type(error).__name__}: {error}); going on without its pruner")
        return None


def check(settings: Settings, axes: Mapping[str, Axis]) -> None:
    """Refuse what no study can be made of, before anything is written.

    Raises:
        ConfigError: wrong settings or axes, or Optuna is not installed.
    """
    problems = settings.problems() + _axes_problems(settings, axes)
    if problems:
        raise ConfigError(problems)
    _optuna_parts()


def _axes_problems(settings: Settings, axes: Mapping[str, Axis]) -> list[str]:
    if not axes:
        return [problem("hydra/sweeper", "optuna", "options to choose", "add one, such as rope.alpha=interval(0.25,4)")]
    endless = next((key for key, axis in axes.items() if grid({key: axis}) is None), None)
    if settings.sampler == "grid" and endless is not None:
        fix = "write choice(...) or range(...) there, or take hydra.sweeper.sampler=tpe"
        return [problem("hydra.sweeper.sampler", "grid", f"tpe | random, as {endless} is an interval", fix)]
    return []


def _optuna_parts() -> ModuleType:
    try:
        from . import optuna_parts
    except ImportError as error:
        fix = "pip install 'yarn-train[sweep]'"
        raise ConfigError(problem("hydra/sweeper", f"optuna: {error}", "basic, or Optuna installed", fix)) from error
    return optuna_parts
