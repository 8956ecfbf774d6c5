"""Which trackers a run has, and what they are told about it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..config import Config, TrackingConfig
from ..dist import environment
from ..dist.runtime import Runtime
from ..errors import problem
from ..metrics import tensorboard_sink
from ..metrics.tensorboard_sink import TensorBoardTracker
from ..metrics.tracked import placed
from ..metrics.tracker import COMPLETE, FAILED, FILE, STOPPED, Record, Tracker
from ..metrics.tracking import Trackers
from ..metrics.wandb_sink import Online, WandbRun, WandbTracker
from ..redact import redacted, redacted_values
from ..stages import Stage
from ..sweep.record import sweep_of
from . import run_folder, wandb_login


def tracking_problems(cfg: TrackingConfig) -> list[str]:
    """Trackers that were asked for by name and cannot work on this machine. Only rank 0's machine tracks."""
    if environment.rank() != 0:
        return []
    found = wandb_login.problems(cfg.wandb)
    if cfg.tensorboard and not tensorboard_sink.installed():
        fix = "pip install tensorboard, or leave it out"
        found.append(problem("tracking.tensorboard", True, "false, as tensorboard is not installed", fix))
    return found


def tracking_line(cfg: TrackingConfig, folder: Path) -> str:
    """Who is told of the metrics, in one line for the run's banner."""
    mode = wandb_login.mode(cfg.wandb)
    wandb = mode.line or f"wandb: {mode.name or 'off'}"
    where = f" in {folder / 'wandb'}" if mode.name == "offline" else ""
    project = f", project {cfg.wandb_project}" if mode.name is not None else ""
    board = f"; TensorBoard in {folder / 'tensorboard'}" if cfg.tensorboard else ""
    return redacted(f"{wandb}{where}{project}{board}", environment.secrets())


def start_trackers(
    stages: Sequence[Stage], whole: Config, folder: Path, runtime: Runtime, say: Callable[[str], None]
) -> Trackers:
    """The trackers of a run that begins or goes on, each in a thread of its own; none but on the main process.

    Args:
        whole: what the stages have in common.
        folder: the run folder.
    """
    if not runtime.is_main:
        return Trackers()
    mode = wandb_login.mode(whole.tracking.wandb)
    if mode.name is None and not whole.tracking.tensorboard:
        return Trackers()
    record, config = Record(folder / FILE), described(stages, whole, folder, runtime.world_size)
    found: list[Tracker] = []
    if mode.name is not None:
        found.append(WandbTracker(wandb_run(mode.name, whole, folder, config), record))
    if whole.tracking.tensorboard:
        found.append(TensorBoardTracker(folder, config, record))
    at = placed([(stage.folder, stage.cfg.train.steps, stage.finished) for stage in stages])
    return Trackers(at, found, say)


def wandb_run(mode: Online, whole: Config, folder: Path, config: dict[str, Any]) -> WandbRun:
    """What a run's wandb run is called."""
    tracking, secrets, sweep = whole.tracking, environment.secrets(), sweep_of(folder)
    group = tracking.wandb_group or (sweep.name if sweep is not None else None)
    return WandbRun(
        mode=mode,
        folder=folder.absolute(),
        name=redacted(whole.run.name, secrets),
        project=tracking.wandb_project,
        entity=tracking.wandb_entity,
        group=redacted(group, secrets) if group else None,
        tags=[redacted(tag, secrets) for tag in tracking.wandb_tags],
        config=config,
        model=tracking.wandb_model,
    )


def described(stages: Sequence[Stage], whole: Config, folder: Path, world_size: int) -> dict[str, Any]:
    """The options as config.yaml has them, those of each stage below ``stages``, and what ran them."""
    about = {
        "git": run_folder.git_hash(),
        "versions": run_folder.versions(),
        "python": platform.python_version(),
        "world_size": world_size,
        "host": platform.node(),
        "folder": redacted_values(str(folder.absolute()), environment.secrets()),
    }
    each = {stage.folder.name: run_folder.plain(stage.cfg) for stage in stages}
    return {**run_folder.plain(whole), "stages": each, "about": about}


def ending_of(reason: str) -> str:
    """How trackers call what run.json says of the end."""
    if reason == "complete":
        return COMPLETE
    return FAILED if reason.startswith("failed") else STOPPED
