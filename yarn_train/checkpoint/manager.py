"""Checkpoints of a stage: which is newest and intact, saving in the background, loading on any number of ranks.

A checkpoint is written into a folder whose name no reader looks at, renamed, and only then marked COMPLETE. A process
that dies at any moment therefore leaves either a complete checkpoint or one that nobody sees.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import CheckpointConfig
from ..dist.collectives import from_all, max_int
from ..dist.failure import explained
from ..dist.heartbeat import heartbeat
from ..dist.runtime import Runtime
from ..engine.base import Engine
from ..errors import CheckpointError
from . import rng, saving
from .complete import (
    ALMOST,
    COMPLETE,
    LOST,
    UNFINISHED,
    Complete,
    Damaged,
    complete_checkpoints,
    dealt,
    file_problems,
    finish,
    problems_of,
    standings,
)
from .fragments import Piece, pieces, set_values, values
from .host_copy import HostCopy, chunks
from .index import Index, fitting
from .layout import Range, shares
from .ranks import SEEN_WITHIN, agreed, exchange_apart, refuse_unshared
from .safetensors_file import Sealed, header
from .saving import Kept, Save
from .state import TrainState

__all__ = ["COMPLETE", "CheckpointManager", "complete_checkpoints", "problems_of"]


@dataclass(frozen=True)
class Plan:
    """Who writes what; it costs time with many ranks, and changes only with what they hold.

    Attributes:
        held: by this rank.
        mine: what this rank writes of it.
        index: of what all write, without values.
    """

    held: list[Range]
    mine: list[Range]
    index: Index


class CheckpointManager:
    """Checkpoints of one stage, in `folder`; every method is collective unless it says otherwise.

    Raises:
        StorageError: `folder` cannot be written, or ranks do not share it.
    """

    def __init__(self, folder: Path, cfg: CheckpointConfig, runtime: Runtime, say: Callable[[str], None] = print):
        self.folder = folder
        self.cfg = cfg
        self.runtime = runtime
        self.say = say
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.longest = 0.0  # seconds from the beginning to the end of a save
        self._plan: Plan | None = None
        self._copy = HostCopy(runtime.device)
        self._exchange = exchange_apart(runtime.world_size)
        self._keep = Kept(cfg.keep, cfg.keep_every)
        refuse_unshared(folder, runtime)

    @property
    def failed(self) -> bool:
        """Whether this rank knows of a save that failed; :meth:`finish` then raises (not collective)."""
        return self._error is not None

    @property
    def writing(self) -> bool:
        """Whether this rank still writes in the background (not collective)."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait for the save that is under way, if any.

        Raises:
            StorageError: it could not be written; the same on every rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise explained(error)

    def settle(self, seconds: float | None) -> None:
        """Let the save under way end, if it does in time, whatever becomes of it; not collective."""
        if self._thread is not None:
            self._thread.join(seconds)

    def save(self, engine: Engine, state: TrainState, began: float | None = None) -> float:
        """Begin a checkpoint of `state.step` once the one before is done; without ``async_save``, also complete it.

        Args:
            began: when training stopped for it, by time.perf_counter(); None is now.

        Returns:
            Seconds that the caller stood still.

        Raises:
            StorageError: this save, or the one before it, could not be written; the same on every rank.
        """
        started = time.perf_counter() if began is None else began
        self.finish()
        tree = engine.state_dict()
        held = pieces(tree)
        plan = self._planned([Range.of(piece) for piece in held])
        local = views(held, plan.mine)
        head = header([(part.name, part.dtype, part.length) for part in plan.mine])
        content = self._copy.take(local) if self.cfg.async_save else chunks(local)
        save = Save(
            folder=self.folder,
            rank=self.runtime.rank,
            files=saving.this_ranks_files(self.runtime.rank, chain([head], content)),
            nbytes=sum(part.nbytes for part in plan.mine),
            index=replace(plan.index, values=values(tree)),
            state=state,
            keep=self._keep,
            exchange=self._exchange,
            say=self.say,
            began=started,
        )
        if self.cfg.async_save:
            save.stall = time.perf_counter() - started
            self._thread = threading.Thread(target=self._run, args=[save], name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(save)
        return time.perf_counter() - started

    def _planned(self, held: list[Range]) -> Plan:
        """The plan of the save before, unless some rank holds something else now; collective."""
        plan = self._plan
        if max_int(plan is None or plan.held != held, self.runtime.device) or plan is None:
            written = shares(from_all(held))
            self._plan = plan = Plan(held, written[self.runtime.rank], Index.of(written, {}))
        return plan

    def _run(self, save: Save) -> None:
        try:
            self._write(save)
        except Exception as error:
            self._error = error

    def _write(self, save: Save) -> None:
        save.run()
        self.longest = max(self.longest, time.perf_counter() - save.began)

    def newest(self) -> Path | None:
        """The newest checkpoint that is complete and intact, if any; newer ones that are not are moved out of the way.

        Raises:
            CheckpointError: there are or were checkpoints, and none of them is intact.
            StorageError: one could not be read, so that nobody knows; nothing was changed.
        """
        self.finish()
        heartbeat.at("verify checkpoint")
        found = self._from_main(lambda: standings(self.folder))
        damaged: dict[str, list[str]] = {}
        unused: list[str] = []
        for name, marker in reversed(found):
            problems = [] if marker == UNFINISHED else self._problems(self.folder / name, marker)
            if marker == UNFINISHED or (marker == ALMOST and problems):
                unused.append(name)
            elif problems:
                damaged[name] = problems
            else:
                if marker == ALMOST:
                    self._finish(name)
                self._report(damaged, unused, name)
                heartbeat.at("load")
                return self.folder / name
        if damaged:
            lines = "\n".join(f"  - {name}: {'; '.join(problems[:3])}" for name, problems in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {self.folder} is intact:\n{lines}\n"
                f"restore one from a copy, or delete {self.folder} to start this stage anew"
            )
        self._report({}, unused, None)
        heartbeat.at("load")
        return None

    def remove_old(self) -> None:
        """Remove what is not kept any more, as a smaller ``checkpoint.keep`` than before asks for; not collective.

        To be called when the newest one has been loaded: until then an older one may be needed.
        """
        if not self.runtime.is_main:
            return
        try:
            if removed := saving.remove_old(self.folder, self._keep):
                self.say(f"checkpoint.keep={self._keep.newest}: older checkpoints were removed: {', '.join(removed)}")
        except OSError as error:
            self.say(f"old checkpoints could not be removed: {error}")

    def _finish(self, name: str) -> None:
        """Mark what a save that died right before its end left intact."""
        self._from_main(lambda: finish(self.folder / name))
        self.say(f"checkpoint {name}: its save died right before its end; it is intact and used")

    def _from_main(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on rank 0, on every rank; it may take as long as it wants, and raises on all."""
        return self._exchange(agreed(lambda: work() if self.runtime.is_main else None, self._exchange))[0]

    def _problems(self, checkpoint: Path, marker: str) -> list[str]:
        """What is wrong with a checkpoint; each rank reads a part of its files."""
        if marker == LOST:
            return [f"{COMPLETE} is missing, which it had once; what its files should be is not known"]

        def load() -> Complete | str:
            try:
                return Complete.load(checkpoint, marker)
            except Damaged as error:
                return str(error)

        complete = self._from_main(load)
        if isinstance(complete, str):
            return [complete]
        mine = _told(dealt(complete.files, self.runtime.world_size)[self.runtime.rank])
        patience = SEEN_WITHIN if self.runtime.world_size > 1 else 0.0
        problems = agreed(lambda: file_problems(checkpoint, mine, patience), self._exchange)
        return [problem for found in self._exchange(problems) for problem in found]

    def _report(self, damaged: Mapping[str, Sequence[str]], unused: Sequence[str], used: str | None) -> None:
        """Say what is not used and why, and move what is damaged out of the way of later saves."""
        for name in unused:
            self.say(f"checkpoint {name} has no {COMPLETE}: its save did not end; it is not used")
        for name, found in damaged.items():
            moved = self._from_main(lambda name=name: _free_name(self.folder / f"{name}.corrupt"))  # type: ignore[misc]
            self.say(
                f"checkpoint {name} is damaged: {'; '.join(found)}; {used} is used instead, "
                f"and what is left of {name} is kept as {moved}"
            )
            self._from_main(lambda name=name, moved=moved: (self.folder / name).rename(moved))  # type: ignore[misc]

    def load(self, engine: Engine, checkpoint: Path) -> TrainState:
        """Put a checkpoint into the engine (sharded anew if the number of ranks changed) and return its state.

        Raises:
            CheckpointError: it holds other tensors than the engine; nothing was loaded. The same on every rank.
            StorageError: it could not be read; the same on every rank.
        """
        heartbeat.at("load checkpoint")
        tree = engine.state_dict()
        held = pieces(tree)
        wanted = {name for names in self._exchange([piece.name for piece in held]) for name in names}
        index = agreed(lambda: fitting(checkpoint, held, wanted, values(tree)), self._exchange)
        agreed(lambda: index.read(checkpoint, held), self._exchange)
        set_values(tree, index.values)
        engine.load_state_dict(tree)
        return agreed(lambda: self._restore(checkpoint), self._exchange)

    def _restore(self, checkpoint: Path) -> TrainState:
        """This rank's random-number states, and where the run stood."""
        states = rng.file_of(self.runtime.rank)
        if states in Complete.load(checkpoint).files:  # a rank that did not exist when saving keeps its seeded states
            rng.restore(checkpoint / states)
        return TrainState.load(checkpoint)


def _told(files: Sequence[tuple[str, Sealed]]) -> Iterator[tuple[str, Sealed]]:
    """The files; whoever watches sees that the work goes on from one to the next."""
    for file in files:
        heartbeat.at("verify checkpoint")
        yield file


def views(held: Sequence[Piece], ranges: Sequence[Range]) -> list[Tensor]:
    """The elements of these ranges."""
    by_name = {piece.name: piece for piece in held}
    found = []
    for part in ranges:
        piece = by_name[part.name]
        found.append(piece.local.narrow(0, part.start - piece.start, part.length))
    return found


def _free_name(path: Path) -> Path:
    """`path`, or the first of path.2, path.3 ... that does not exist."""
    names = chain([path], (path.with_name(f"{path.name}.{number}") for number in count(2)))
    return next(name for name in names if not name.exists())
