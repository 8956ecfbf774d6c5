"""``launch.nproc_per_node``: start this job's workers through torch's elastic agent, in place of torchrun.

The agent runs in a thread. Its signal handlers end workers after 30 seconds, and it installs them in the main thread
only; here the main thread passes a request to stop on and waits for as long as the workers take to save.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.agent.server import RunResult, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from ..config import LaunchConfig
from ..dist import environment, others
from ..dist.stop import stop_code
from ..errors import RanksLost, RunFolderTaken
from ..stages import resolve
from ..train import run_folder, run_lock
from . import logs
from .counts import check_launcher, count_workers
from .first_failure import LOG, Failure, first, left, seen, told
from .requests import Forward, is_running

TICK = 0.1  # seconds between two looks at the workers
# Seconds without a worker after which an agent that should end is taken to be stuck: where the link to the rendezvous
# is cut, it waits a quarter of an hour for the kernel to give the connection up.
STUCK = 30.0
# Seconds that workers get after one of them has left on request. Whoever waits inside of C++ for that one (the process
# group's start, a collective) cannot hear, and has nothing to save: after a checkpoint all ranks leave together.
LATE = 10.0
ALONE = 2.0  # seconds without a worker after which a stopped launcher no longer waits for other machines


def start_workers(raw: Mapping[str, Any], typed: Collection[str], folder: Path, words: Sequence[str]) -> int | None:
    """Start the workers of a training job and wait for them; a wrong option of any stage costs no start.

    Args:
        raw: the composed options as a plain nested dict.
        typed: keys the user typed on the command line.
        folder: the run folder.
        words: what Python is given to run a worker: script or module, and this job's options.

    Returns:
        The job's exit code; None where a launcher that agrees with the options has started this process.

    Raises:
        ConfigError: an option is wrong or contradicts the launcher.
    """
    return run_workers(resolve(raw, folder, typed)[0].cfg.launch, folder, words)


def run_workers(launch: LaunchConfig, folder: Path, words: Sequence[str]) -> int | None:
    """Like :func:`start_workers` for options that are checked already."""
    if environment.under_launcher():
        check_launcher(launch)
        return None
    return Job(launch, count_workers(launch), folder, words).run()


class Refused(Exception):
    """Workers are not started again after a failure that the user has to mend."""

    def __init__(self, failure: Failure):
        super().__init__(failure.message)
        self.failure = failure


class Job:
    """The workers of one job on this machine, from their start to the job's exit code."""

    def __init__(self, launch: LaunchConfig, workers: int, folder: Path, words: Sequence[str]):
        self.launch, self.workers, self.folder, self.words = launch, workers, folder, words
        self._agent: LocalElasticAgent | None = None  # set by the thread that runs it, as the next two
        self._result: RunResult | None = None
        self._error: Exception | None = None
        self._stuck = False
        self._own: set[int] = set()  # process ids of all workers so far
        self._began = time.time()
        # Of several machines the same on each: they start the same command.
        self._id = uuid.uuid4().hex if launch.nnodes == 1 else folder.name
        # A restart waits for the other machines, for launch.timeout; otherwise an agent ends soon after its workers.
        self._patience = STUCK + (launch.timeout if launch.max_restarts else 0.0)

    def run(self) -> int:
        """Start the workers, wait for their end, say on the console how they failed.

        Returns:
            The job's exit code.

        Raises:
            RanksLost: the machines of the job did not meet.
        """
        with ExitStack() as stack:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yarn_train_")))
            exit_file = temporary / "exit"
            requests = stack.enter_context(Forward(self._pids))
            run_lock.refuse_foreign(self.folder)  # before logs are written into it
            folder = logs.new_folder(self.folder, self.launch.nnodes)
            recorder = folder / "collectives_of_rank_"
            restarts = self.launch.max_restarts > 0
            stack.enter_context(environment.for_workers(self.workers, exit_file, restarts, recorder))
            nodes = f", of {self.launch.nnodes}" if self.launch.nnodes > 1 else ""
            print(f"workers: {self.workers} on this machine{nodes}; their logs: {folder}", flush=True)
            stack.enter_context(logs.torch_messages(folder / "launcher.log"))
            with logs.Console() as console:
                ranks = logs.RankLogs(folder, temporary, console, self._before_restart)
                self._wait(ranks, exit_file, requests)
            return self._outcome(ranks, exit_file, requests)

    def _wait(self, ranks: logs.RankLogs, exit_file: Path, requests: Forward) -> None:
        thread = threading.Thread(target=self._run_agent, args=(ranks,), name="agent", daemon=True)
        thread.start()
        alone = together = time.monotonic()
        begun = False
        while thread.is_alive():
            thread.join(TICK)
            requests.tell_new()
            finishing = self._agent and self._agent.get_worker_group().state == WorkerState.SUCCEEDED
            pids = self._pids()
            begun = begun or bool(pids)
            if finishing or pids or not (begun or requests.requested):
                alone = time.monotonic()
            if not (pids and requests.requested and exit_file.exists()):
                together = time.monotonic()
            elif self._agent and time.monotonic() - together > LATE:
                self._agent._remaining_restarts = 0  # it takes them for failed
                requests.kill(pids)
            waited = time.monotonic() - alone
            if requests.requested and waited > ALONE:
                return  # it waits for other machines, and there is nothing to save
            if waited > self._patience:
                self._stuck = True
                return

    def _run_agent(self, ranks: logs.RankLogs) -> None:
        try:
            spec = worker_spec(self.launch, self.workers, self._id, self.words)
            self._agent = LocalElasticAgent(spec, ranks)
            try:
                self._result = self._agent.run()
            finally:
                spec.rdzv_handler.shutdown()
        except Exception as error:  # it belongs to the main thread
            self._error = error

    def _pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        workers = self._agent.get_worker_group().workers if self._agent else []
        found = [worker.id for worker in workers if isinstance(worker.id, int) and is_running(worker.id)]
        self._own.update(found)
        return found

    def _before_restart(self, number: int, found: dict[int, Failure | None]) -> None:
        told = [failure for failure in found.values() if failure]
        cause = first(told) if told else None
        if cause and cause.is_users:
            raise Refused(cause)
        if cause and not cause.is_lost:
            what = f"rank {cause.rank} failed ({cause.reason})"
        else:
            silent = ", ".join(str(rank) for rank, failure in found.items() if failure is None)
            lost = "another machine's" if self.launch.nnodes > 1 else "each other"
            what = f"rank {silent} ended without an error" if silent else f"all ranks lost {lost}"
        text = f"{what}; starting the workers again, {number} of {self.launch.max_restarts}"
        print(text, file=sys.stderr, flush=True)

    def _outcome(self, ranks: logs.RankLogs, exit_file: Path, requests: Forward) -> int:
        """The job's exit code; tells a failure."""
        if isinstance(self._error, Refused):
            return self._failed(self._error.failure, ranks)
        if self._stuck:
            known = [failure for failure in ranks.left().values() if failure]
            if known:
                return self._failed(first(known), ranks)
            several = self.launch.nnodes > 1
            why = f"{self.launch.rendezvous} does not answer" if several else f"torch's agent hangs; see {ranks.folder}"
            raise RanksLost(f"the workers on {platform.node()} ended, and {why}")
        if self._error is not None and requests.requested is None:
            raise explained(self._error, self.launch) from self._error
        failures = self._result.failures if self._result else {}
        if requests.requested and all(requests.explains(f.pid, f.exitcode) for f in failures.values()):
            # Or the job was done just then, but a sweep must not go on.
            return stop_code(exit_file) or requests.exit_code
        if not failures:
            return stop_code(exit_file)
        return self._failed(first([seen(rank, f, ranks.error_path(rank)) for rank, f in failures.items()]), ranks)

    def _failed(self, cause: Failure, ranks: logs.RankLogs) -> int:
        said = left(0, ranks.error_path(0))
        text = told(cause, ranks.path(cause.rank, "err"), self.launch.nnodes, self._stood(cause.rank))
        # A log on a full disk does not hold what filled it.
        on_console = cause.is_users and said and said.is_users and logs.holds(ranks.path(0, "err"), said.message)
        if not on_console:
            print(text, file=sys.stderr, flush=True)
        with suppress(OSError):
            run_folder.record_failure(self.folder, f"failed: {text.rpartition(LOG)[0]}", self._id, self._began)
        if cause.kind == RunFolderTaken.__name__:
            logs.remove(ranks.folder)  # it is the other run's folder
        elif cause.is_users:
            logs.remove_if_alone(ranks.folder)
        return cause.exit_code

    def _stood(self, rank: int) -> str:
        """Where in the run a rank stood when it failed; empty for one that had not begun."""
        state = others.read(self.folder / others.FOLDER, rank)
        own = state is not None and state["pid"] in self._own and state["time"] > self._began
        return others.place(state["step"], state["phase"]) if state is not None and own else ""


def worker_spec(launch: LaunchConfig, workers: int, launch_id: str, words: Sequence[str]) -> WorkerSpec:
    """What torch's agent starts, and where the machines of the job meet; waits for the machine that they meet on."""
    alone = launch.nnodes == 1
    patience = int(max(1.0, launch.timeout))
    address = "localhost" if alone else None  # a laptop's own name often resolves to nothing
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0" if alone else launch.rendezvous or "",  # port 0: any free one
        run_id=launch_id,
        min_nodes=launch.nnodes,
        max_nodes=launch.nnodes,
        local_addr=address,
        join_timeout=patience,
        read_timeout=patience,
    )
    return WorkerSpec(
        role="worker",
        local_world_size=workers,
        entrypoint=sys.executable,
        # The agent substitutes ${local_rank} in arguments, and turns $$ into $ on the way.
        args=("-u", *(word.replace("$", "$$") for word in words)),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=launch.max_restarts,
        monitor_interval=TICK,
        local_addr=address,
    )


def explained(error: Exception, launch: LaunchConfig) -> Exception:
    """`error`, or what it means where it says that the machines of the job did not meet."""
    if not isinstance(error, RendezvousError | DistNetworkError | DistStoreError):
        return error
    if launch.nnodes == 1:
        return RanksLost(f"the workers of {platform.node()} cannot meet on its own localhost: {error}")
    return RanksLost(
        f"{platform.node()} did not meet the other machines of the job at {launch.rendezvous}: {error}\n"
        f"{launch.nnodes} machines must start the same command within launch.timeout={launch.timeout:g} seconds, and "
        "reach that address (python -m yarn_train.doctor --nodes finds the one that does not)."
    )
