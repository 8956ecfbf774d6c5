"""Where workers write: a file per rank and stream below ``<run folder>/logs``, and rank 0's to the console, live."""

from __future__ import annotations

import logging
import os
import platform
import select
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from .first_failure import Failure, left

FOLDER = "logs"
INTERVAL = 0.1  # seconds between two looks at rank 0's files


def new_folder(run_folder: Path, nodes: int) -> Path:
    """A folder of this start's own, named by the time (UTC) and, of several machines, by this one."""
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S") + (f"-{platform.node()}" if nodes > 1 else "")
    for number in count(1):
        folder = run_folder / FOLDER / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def remove_if_alone(folder: Path) -> None:
    """Remove a start's logs where its run folder holds nothing else: nothing began that they could tell of."""
    run_folder = folder.parent.parent
    with suppress(OSError):  # deleted by somebody in mid-run
        if {entry.name for entry in run_folder.iterdir()} == {FOLDER}:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a start's logs, and the folders above that hold nothing then."""
    shutil.rmtree(folder, ignore_errors=True)
    for above in (folder.parent, folder.parent.parent):
        with suppress(OSError):  # not empty
            above.rmdir()


def holds(log: Path, message: str) -> bool:
    """Whether a log has the first line of a message."""
    try:
        return message.partition("\n")[0] in log.read_text(errors="replace")
    except OSError:
        return False


class Console:
    """Copies what rank 0 writes into its files to this process's stdout and stderr, as it comes.

    By bytes: carriage returns of progress bars stay what they are.
    """

    def __init__(self) -> None:
        self._files: list[tuple[int, int]] = []  # (descriptor read from, descriptor written to)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def follow(self, path: Path, to: int) -> None:
        """Copy all that comes into the file at `path` to the descriptor `to`."""
        self._files.append((os.open(path, os.O_RDONLY | os.O_CREAT), to))

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        """Copy the rest and stop."""
        self._done.set()
        self._thread.join()
        for source, _ in self._files:
            os.close(source)

    def _run(self) -> None:
        while not self._done.wait(INTERVAL):
            self._copy()
        self._copy()

    def _copy(self) -> None:
        for source, to in list(self._files):
            while data := os.read(source, 1 << 16):
                try:
                    write(data, to)
                except OSError:  # a terminal that was closed, a pipe nobody reads: the files have it all
                    break


def write(data: bytes, to: int) -> None:
    """All of `data` to a descriptor; one that somebody made non-blocking is waited for."""
    while data:
        try:
            data = data[os.write(to, data) :]
        except BlockingIOError:
            select.select([], [to], [])


class RankLogs(LogsSpecs):
    """Tells torch's elastic agent which files each rank's output and error go to.

    Args:
        folder: of this start; workers that were started again write into ``restart<n>`` below it.
        errors: a folder for the files in which workers leave their errors.
        console: shows what global rank 0 writes.
        before_restart: called before the workers are started again, with the number of that restart and the failure
            that each rank left; it may raise to prevent the restart.
    """

    def __init__(
        self,
        folder: Path,
        errors: Path,
        console: Console,
        before_restart: Callable[[int, dict[int, Failure | None]], None],
    ):
        super().__init__(log_dir=str(folder))
        self.folder, self.attempt = folder, 0
        self._errors, self._console, self._before_restart = errors, console, before_restart
        self._ranks: list[int] = []  # of the present attempt

    @property
    def root_log_dir(self) -> str:
        """The folder of this start."""
        return str(self.folder)

    def path(self, rank: int, stream: str) -> Path:
        """The file of a rank's `out` or `err` in the present attempt."""
        folder = self.folder / f"restart{self.attempt}" if self.attempt else self.folder
        return folder / f"rank{rank}.{stream}"

    def error_path(self, rank: int) -> Path:
        """The file in which a rank leaves its error in the present attempt."""
        return self._errors / str(self.attempt) / f"{rank}.json"

    def left(self) -> dict[int, Failure | None]:
        """The failure that each rank of the present attempt left, by rank."""
        return {rank: left(rank, self.error_path(rank)) for rank in self._ranks}

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Files by local rank; called by the agent before each start of its workers, which get `envs`."""
        ranks = {local: int(env["RANK"]) for local, env in envs.items()}
        if self._ranks:
            self._before_restart(self.attempt + 1, self.left())
            self.attempt += 1
        self._ranks = list(ranks.values())
        destination = LogsDest()
        for local, rank in ranks.items():
            out, err, error = self.path(rank, "out"), self.path(rank, "err"), self.error_path(rank)
            for file in (out, error):
                file.parent.mkdir(parents=True, exist_ok=True)
            destination.stdouts[local], destination.stderrs[local] = str(out), str(err)
            destination.error_files[local] = envs[local]["TORCHELASTIC_ERROR_FILE"] = str(error)
            if rank == 0:
                self._console.follow(out, 1)
                self._console.follow(err, 2)
        return destination


class Messages(logging.FileHandler):
    """A log that is made with its first line; where it cannot be, lines are lost and the launcher goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)


@contextmanager
def torch_messages(file: Path) -> Iterator[None]:
    """Inside, what torch's launcher logs goes to `file`: the console says the same in fewer words."""
    handler = Messages(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # The agent runs in a thread by design; its warning speaks of orphans that dist.orphans sees to.
    handler.addFilter(lambda record: "register signal handlers" not in record.getMessage())
    top = logging.getLogger("torch.distributed")
    below = [logging.getLogger(name) for name in list(top.manager.loggerDict) if name.startswith(f"{top.name}.")]
    before = [(logger, logger.handlers, logger.propagate) for logger in (top, *below)]
    for logger in below:
        logger.handlers = []
    top.handlers, top.propagate = [handler], False
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
