"""What Hydra's launchers cannot be told: found before a sweep begins; they say it with a traceback when it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import problem

# option -> least; null leaves it to the scheduler
SUBMITIT = {"timeout_min": 1, "cpus_per_task": 1, "tasks_per_node": 1, "nodes": 1, "mem_gb": 0, "gpus_per_node": 0}
SLURM = {"array_parallelism": 1, "signal_delay_s": 0, "max_num_timeout": 0, "cpus_per_gpu": 1, "gpus_per_task": 0}


def problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with a launcher's settings.

    Args:
        name: Hydra's, such as joblib.
        settings: hydra.launcher.
    """
    if name == "joblib":
        return _of_joblib(settings)
    least = {"submitit_local": SUBMITIT, "submitit_slurm": {**SUBMITIT, **SLURM}}.get(name, {})
    return _too_small(settings, least)


def _of_joblib(settings: Mapping[str, Any]) -> list[str]:
    found = []
    if settings.get("n_jobs") == 0:
        allowed, fix = "jobs at once, or -1 for as many as there are cores", "hydra.launcher.n_jobs=2"
        found.append(problem("hydra.launcher.n_jobs", 0, allowed, fix))
    if settings.get("prefer") not in ("processes", "threads", None):
        fix = "leave it out"
        found.append(problem("hydra.launcher.prefer", settings["prefer"], "processes | threads", fix))
    if settings.get("require") is not None:  # Hydra's launcher always takes processes, which share no memory
        fix = "leave it out; jobs are processes of their own"
        found.append(problem("hydra.launcher.require", settings["require"], "null", fix))
    batch = settings.get("batch_size", "auto")
    if batch != "auto" and not (str(batch).isdecimal() and int(batch) > 0):
        fix = "leave it out; auto is right for jobs that train"
        found.append(problem("hydra.launcher.batch_size", batch, "auto, or a whole number >= 1", fix))
    return found


def _too_small(settings: Mapping[str, Any], least: Mapping[str, int]) -> list[str]:
    given = {key: settings.get(key) for key in least}
    return [
        problem(f"hydra.launcher.{key}", value, f">= {least[key]}", "raise it")
        for key, value in given.items()
        if isinstance(value, int) and value < least[key]
    ]
