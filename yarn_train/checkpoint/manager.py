"""Where checkpoints lie, when one is complete, which is newest and which are kept.

A checkpoint is written into a folder whose name no reader looks at, renamed, and only then marked COMPLETE. A process
that dies at any moment therefore leaves either a complete checkpoint or one that nobody sees.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ..dist.collectives import barrier
from ..dist.runtime import Runtime
from ..engine.base import Engine
from . import dcp
from .state import TrainState

COMPLETE = "COMPLETE"
_NAME = re.compile(r"step_(\d{8})")


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / COMPLETE).is_file()]
    return sorted(found)


class CheckpointManager:
    """Checkpoints of one stage, in `folder`; every method is collective unless it says otherwise."""

    def __init__(self, folder: Path, keep: int, runtime: Runtime):
        self.folder = folder
        self.keep = keep
        self.runtime = runtime

    def newest(self) -> Path | None:
        """The newest complete checkpoint, if any (not collective)."""
        found = complete_checkpoints(self.folder)
        return found[-1] if found else None

    def save(self, engine: Engine, state: TrainState) -> Path:
        """Write a checkpoint of `state.step`, make it visible in one rename, then drop the ones beyond `keep`."""
        final = self.folder / f"step_{state.step:08d}"
        aside = self.folder / f".{final.name}.incomplete"
        if self.runtime.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        barrier()
        dcp.save(engine.state_dict(), aside)
        dcp.save_rng(aside, self.runtime.rank)
        if self.runtime.is_main:
            state.save(aside)
        barrier()
        if self.runtime.is_main:
            self._publish(aside, final)
            self._prune()
        barrier()
        return final

    def load(self, engine: Engine, checkpoint: Path) -> TrainState:
        """Put a checkpoint into the engine (sharded anew if the number of ranks changed) and return its state."""
        tensors = engine.state_dict()
        dcp.load(tensors, checkpoint)
        engine.load_state_dict(tensors)
        dcp.load_rng(checkpoint, self.runtime.rank)
        return TrainState.load(checkpoint)

    def _publish(self, aside: Path, final: Path) -> None:
        for path in aside.iterdir():
            _fsync(path)
        _fsync(aside)
        if final.exists():  # an earlier attempt died between its rename and its marker
            shutil.rmtree(final)
        aside.rename(final)
        _fsync(self.folder)
        (final / COMPLETE).write_text(f"{final.name}\n")
        _fsync(final / COMPLETE)
        _fsync(final)

    def _prune(self) -> None:
        for old in complete_checkpoints(self.folder)[: -self.keep]:
            (old / COMPLETE).unlink()  # first: a half-deleted folder must not count as complete
            shutil.rmtree(old)
        for leftover in self.folder.glob(".step_*.incomplete"):
            shutil.rmtree(leftover, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
