"""Steps that update nothing: which, what is remembered of them, and when there were too many in a row.

Every rank decides for itself and alike, because what it decides by is the same on all: sums over ranks, and the state.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from ..checkpoint.manager import complete_checkpoints
from ..checkpoint.state import Skipped, TrainState
from ..config import Config
from ..errors import TrainingDiverged
from ..metrics.console import listed

WINDOW, ENOUGH = 50, 10  # steps whose mean loss a spike is measured by; fewer than ENOUGH say too little
LOSS, GRADIENT, SPIKE = "loss is not finite", "gradient is not finite", "loss spike"


def reason_to_skip(loss: float, losses: tuple[float, ...], spike_factor: float | None) -> str | None:
    """Why a step with this mean loss must not update the weights, or None.

    Args:
        losses: of the newest steps that were not skipped, at most WINDOW.
        spike_factor: how many times their mean is a spike; None is never.
    """
    if not math.isfinite(loss):
        return LOSS
    if spike_factor is not None and len(losses) >= ENOUGH and loss > spike_factor * math.fsum(losses) / len(losses):
        return SPIKE
    return None


def remember(state: TrainState, loss: float, reason: str | None, segments: list[int]) -> TrainState:
    """The state with what has become of its step, whose numbers it has already."""
    if reason is None:
        return dataclasses.replace(state, skipped_in_a_row=(), losses=(*state.losses, loss)[-WINDOW:])
    one = Skipped(state.step, reason, tuple(segments))
    return dataclasses.replace(state, skipped=state.skipped + 1, skipped_in_a_row=(*state.skipped_in_a_row, one))


def too_many(state: TrainState, cfg: Config) -> bool:
    """Whether more than train.max_skipped steps in a row were skipped."""
    return len(state.skipped_in_a_row) > cfg.train.max_skipped


def diverged(state: TrainState, cfg: Config, lr: float, checkpoints: Path) -> TrainingDiverged:
    """The error that ends a run after :func:`too_many`.

    Args:
        lr: learning rate of the last step.
        checkpoints: the stage's folder of them.
    """
    streak, newest = state.skipped_in_a_row, complete_checkpoints(checkpoints)
    lines = "\n".join(f"  - step {one.step}: {one.reason}, segments {listed(one.segments)}" for one in streak)
    stands = f"the newest checkpoint is intact: {newest[-1]}" if newest else "no checkpoint was written yet"
    return TrainingDiverged(
        f"{len(streak)} steps in a row were skipped, more than train.max_skipped={cfg.train.max_skipped} allows; none "
        f"of them changed a weight:\n{lines}\n"
        f"the learning rate is {lr:.3g} (optim.lr={cfg.optim.lr:g}); {stands}\n"
        "starting again does the same again. What to try, with run.allow_change=[...] for options that change:\n"
        "  - look at the data: python data/prepare.py <the same options> --verify --show 3\n"
        "  - a lower optim.lr, or a longer schedule.warmup_steps\n"
        f"  - {_about_spikes(cfg)}\n"
        "  - model.dtype=float32: tells whether the base cannot be computed in bfloat16, or holds numbers that are not "
        "finite itself"
    )


def broken_weights(state: TrainState, checkpoints: Path) -> TrainingDiverged:
    """The error in place of a checkpoint that would hold weights that are not finite."""
    newest = complete_checkpoints(checkpoints)
    stands = (
        f"the newest one is intact: {newest[-1]}" if newest else "the weights that this stage starts from are broken"
    )
    return TrainingDiverged(
        f"after step {state.step} some weights are infinite or NaN, so no checkpoint is written; {stands}\n"
        "training skips updates that are not finite: look at the first weights (model.path, run.init_from, optim.lr)"
    )


def _about_spikes(cfg: Config) -> str:
    if cfg.train.spike_factor is None:
        return "train.spike_factor=2: skips steps whose loss jumps, before they do harm"
    return f"a higher train.spike_factor than {cfg.train.spike_factor:g}, if the losses are what the data should give"
