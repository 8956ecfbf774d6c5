"""What an experiment needs of this machine: bytes on disk and where its model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import config as schema
from ...dist.runtime import device
from ...errors import ConfigError, YarnTrainError
from ...plan.architectures import architecture
from ...plan.check import check_run_fits
from ...plan.disk import run_room
from ...stages import resolve
from ..finding import FAIL, OK, Finding
from .disk import disk


def output_disk(options: Mapping[str, Any] | None, folder: str, speed: bool = True) -> list[Finding]:
    """The output folder's line, with what an experiment's composed `options` will write there."""
    try:
        needed = run_bytes(options, folder) if options else 0.0
    except YarnTrainError:
        needed = 0.0  # the model is not here yet: the line about the hub says so
    return disk(folder, "output", needed, speed)


def run_bytes(options: Mapping[str, Any], folder: str) -> float:
    """Bytes that all stages still write: the checkpoints kept, the one being written beside them, and the exported
    models, less what an interrupted run has left in its folder.
    """
    stages = resolve(options, Path(folder))
    unfinished = [stage for stage in stages if not stage.finished]
    return run_room(unfinished, architecture(stages[0].cfg)[0], Path(folder)).needed


def fit(options: Mapping[str, Any]) -> list[Finding]:
    """Whether the experiment's batches and memory fit this machine's GPUs (its CPU with one rank, without any)."""
    ranks = max(1, torch.cuda.device_count()) if torch.cuda.is_available() else 1
    stages = resolve(options, Path("outputs"))
    configs = [stage.cfg for stage in stages]
    means = "the run is refused before weights load"
    try:
        for cfg in configs:
            schema.validate(cfg, ranks)
        line = check_run_fits(configs, architecture(configs[0])[0], device(), ranks, ranks)
    except ConfigError as error:
        got, _, fix = error.problems[0].partition("; fix: ")
        return [Finding(FAIL, "experiment", got, means, fix)]
    if line.startswith("WARNING"):  # plan.check=warn
        return [Finding(FAIL, "experiment", line, "it starts and is likely to run out of memory", "plan.check=refuse")]
    return [Finding(OK, "experiment", f"{ranks} rank(s); {line}")]
