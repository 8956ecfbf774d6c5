"""The parts of Optuna, 4 or 5, that a study is made of; with :mod:`study` its only user."""

from __future__ import annotations

import warnings

import optuna

from ..errors import DataError, problem
from .settings import Settings
from .space import Axis, Choices

# Seconds to wait for a file that others write to: a sweeper has the time, steps of training have not.
PATIENCE, PATIENCE_OF_JOB = 60.0, 5.0
STATES = {state.name: state for state in optuna.trial.TrialState}


def opened(url: str, settings: Settings, create: bool) -> optuna.Study:
    """The study behind a URL, made where there is none if `create`.

    Raises:
        DataError: with `create`, where the database cannot be read; without it whatever goes wrong.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    patience = PATIENCE if create else PATIENCE_OF_JOB
    wait = {"connect_args": {"timeout": patience}} if url.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=wait, skip_table_creation=not create)
        name = settings.study_name
        if not create:
            idle = optuna.samplers.RandomSampler()
            return optuna.load_study(study_name=name, storage=storage, sampler=idle, pruner=_pruner(settings))
        study = optuna.create_study(storage=storage, study_name=name, pruner=_pruner(settings), load_if_exists=True)
        # a study that goes on must not draw its first random numbers again
        seed = None if settings.seed is None else settings.seed + len(study.get_trials(deepcopy=False))
        study.sampler = _sampler(settings, seed)
        return study
    except Exception as error:
        if not create:
            raise
        got = " ".join(str(error).split())[:300]
        fix = "move it away: a new study asks for values anew, and jobs that are complete are not run again"
        raise DataError(problem(f"study {url}", f"{type(error).__name__}: {got}", "a study by Optuna", fix)) from error


def _sampler(settings: Settings, seed: int | None) -> optuna.samplers.BaseSampler:
    if settings.sampler != "tpe":  # a grid's values are all queued
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(
            n_startup_trials=settings.startup_trials, seed=seed, constant_liar=settings.n_jobs > 1
        )


def _pruner(settings: Settings) -> optuna.pruners.BasePruner:
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, settings.prune_after_steps))
    return optuna.pruners.MedianPruner(
        settings.prune_after_trials, settings.prune_after_steps, interval_steps=settings.prune_every
    )


def distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    """An axis in Optuna's terms."""
    if isinstance(axis, Choices):
        return optuna.distributions.CategoricalDistribution(axis.words)
    if axis.whole:
        low, high = round(axis.low), round(axis.high)
        return optuna.distributions.IntDistribution(low, high, log=axis.log, step=round(axis.step or 1))
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def live(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> optuna.Trial:
    """A trial that another process asked for, to report to."""
    return optuna.Trial(study, trial._trial_id)
