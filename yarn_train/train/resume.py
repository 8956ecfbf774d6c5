"""Going on from a checkpoint under the options of this start: what must fit, and what the user is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ..checkpoint.state import TrainState, refuse_other_data
from ..config import Config
from ..data.stream import Stream
from ..errors import CheckpointError, problem
from .same_run import other_data_allowed


def check_resume(checkpoint: Path, cfg: Config, stream: Stream, say: Callable[[str], None]) -> None:
    """Check a checkpoint against this start's data and schedule, before weights load.

    Raises:
        CheckpointError: it was trained on other data, or for more steps than there are now.
    """
    state = TrainState.load(checkpoint)
    if state.step > cfg.train.steps:
        fix = f"at least {state.step}; or choose another run.name"
        raise CheckpointError(
            problem("train.steps", cfg.train.steps, f">= {state.step}, the step of {checkpoint}", f"set it to {fix}")
        )
    changed = refuse_other_data(checkpoint, stream.state(state.samples), other_data_allowed(cfg))
    if changed:
        say(changed)


def continued(stored: TrainState, fresh: TrainState) -> TrainState:
    """The state to go on from: where the checkpoint stood, on the ranks and with the seed of this start.

    Args:
        fresh: this start's at step 0.
    """
    return dataclasses.replace(stored, seed=fresh.seed, world_size=fresh.world_size, accumulation=fresh.accumulation)


def resume_line(checkpoint: Path, then: TrainState, now: TrainState) -> str:
    """One line: where training goes on, and what holds the same batches in other shares."""
    where = f"resumed from {checkpoint} at step {now.step}"
    if then.world_size == now.world_size and then.accumulation in (0, now.accumulation):
        return f"{where}, on {_ranks(now)} as before"
    return f"{where}, written by {_ranks(then)}, on {_ranks(now)} now: a batch is the same however it is shared out"


def _ranks(state: TrainState) -> str:
    accumulation = f" x {state.accumulation} accumulation" if state.accumulation else ""
    return f"{state.world_size} rank(s){accumulation}"
