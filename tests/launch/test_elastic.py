"""Workers that train.py starts by itself: started, followed, stopped, started again, and gone with it.

Most workers here are a few lines of Python: what is tested is what happens around them. Whole runs are in
test_self_launch.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import children, environ, wait_for
from support import ROOT
from torch.distributed.elastic.rendezvous import RendezvousError

from yarn_train.config import LaunchConfig
from yarn_train.errors import ConfigError, RanksLost
from yarn_train.launch import counts, elastic, requests
from yarn_train.launch.first_failure import Failure, first, told
from yarn_train.launch.logs import Console

PRELUDE = f"""
import os, pathlib, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
here = pathlib.Path(__file__).parent
"""
LISTEN = """
from yarn_train import cli
from yarn_train.dist.orphans import die_with_launcher
from yarn_train.dist.stop import requests
die_with_launcher()
requests.watch()
"""
READY = '(here / f"ready{rank}").touch()\n'


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], list[str]]:
    """script(lines) -> the words that run a worker of these lines, which know `rank`, `attempt` and `here`."""

    def write(lines: str) -> list[str]:
        file = tmp_path / "worker.py"
        file.write_text(PRELUDE + textwrap.dedent(lines))
        return [str(file)]

    return write


def run(tmp_path: Path, words: list[str], **options: object) -> int | None:
    launch = LaunchConfig(**{"nproc_per_node": 2, **options})  # type: ignore[arg-type]
    return elastic.run_workers(launch, tmp_path / "run", words)


def start(tmp_path: Path, words: list[str], **options: object) -> subprocess.Popen[str]:
    """The same in a process of its own, which gets signals."""
    code = (
        "import sys, pathlib; from yarn_train.launch import elastic; from yarn_train.config import LaunchConfig;"
        f"sys.exit(elastic.run_workers(LaunchConfig(**{ {'nproc_per_node': 2, **options}!r}),"
        f"pathlib.Path({str(tmp_path / 'run')!r}), {words!r}))"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    started.append(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
    return started[-1]


def run_while(tmp_path: Path, words: list[str], then: Callable[[], object], **options: object) -> int | None:
    """run() while `then` is called in another thread, as soon as both workers are ready."""
    failed: list[BaseException] = []

    def act() -> None:
        try:
            wait_for(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)), 100)
            then()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    code = run(tmp_path, words, **options)
    thread.join()
    assert not failed, failed
    return code


def ask(number: int) -> None:
    """A signal to this process, whose launcher is known to handle it."""
    assert signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN)
    os.kill(os.getpid(), number)


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_launcher_is_left() -> Iterator[None]:
    """Also after a failed test; a killed launcher takes its workers along."""
    yield
    while started:
        started.pop().kill()


def logs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "run/logs").iterdir())


def test_ranks_write_files_of_their_own_and_rank_0_the_console(script, tmp_path, capfd):
    words = script("print('out of', rank); print('err of', rank, file=sys.stderr)")
    assert run(tmp_path, words) == 0
    assert run(tmp_path, words) == 0
    console = capfd.readouterr()
    assert console.out.count("out of 0") == 2
    assert console.err == "err of 0\nerr of 0\n"  # nothing of torch's
    assert "out of 1" not in console.out
    starts = logs(tmp_path)
    assert len(starts) == 2
    for start in starts:
        assert {file.name for file in start.iterdir()} == {f"rank{r}.{s}" for r in (0, 1) for s in ("out", "err")}
        assert (start / "rank1.out").read_text() == "out of 1\n"


def test_the_console_shows_a_line_while_its_worker_still_runs(script, tmp_path, capfd):
    words = script(
        """
        print("50 %", end="\\r")  # a progress bar: no line end, not flushed
        while not (here / "go").exists():
            time.sleep(0.02)
        """
    )
    seen = []

    def look() -> None:
        wait_for(lambda: seen.append(capfd.readouterr().out) or "50 %\r" in "".join(seen))
        (tmp_path / "go").touch()

    watcher = threading.Thread(target=look)
    watcher.start()
    assert run(tmp_path, words, nproc_per_node=1) == 0
    watcher.join()
    assert "50 %\r" in "".join(seen)


def test_a_console_that_is_slow_and_does_not_block_gets_everything(tmp_path):
    text = os.urandom(1 << 18)
    (tmp_path / "out").write_bytes(text)
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    got = bytearray()

    def read() -> None:
        while data := os.read(source, 1 << 12):
            got.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    with Console() as console:
        console.follow(tmp_path / "out", sink)
        wait_for(lambda: not select.select([], [sink], [], 0)[1])  # full: the next write is refused
        reader.start()
    os.close(sink)
    reader.join()
    os.close(source)
    assert got == text


def test_a_console_that_is_gone_costs_nothing(tmp_path):
    (tmp_path / "out").write_bytes(b"x" * (1 << 18))
    source, sink = os.pipe()
    os.close(source)
    with Console() as console:
        console.follow(tmp_path / "out", sink)
    os.close(sink)


def test_arguments_arrive_as_they_were_given(script, tmp_path):
    odd = ["a b", "x=[1,'2']", "${local_rank}", "$$", "${run.name}", 'say "so"', "back\\slash", "ü\n"]
    words = script("import json; (here / f'{rank}.json').write_text(json.dumps(sys.argv[1:]))")
    assert run(tmp_path, [*words, *odd]) == 0
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [odd, odd]


@pytest.mark.parametrize(("workers", "threads"), [(1, None), (2, "1")])
def test_several_workers_get_one_thread_each_as_by_torchrun(script, tmp_path, monkeypatch, workers, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = script("(here / f'{rank}').write_text(str(os.environ.get('OMP_NUM_THREADS')))")
    assert run(tmp_path, words, nproc_per_node=workers) == 0
    assert (tmp_path / "0").read_text() == str(threads)
    assert "OMP_NUM_THREADS" not in os.environ
    assert not [name for name in os.environ if name.startswith("YARN_TRAIN_")]


def test_the_rank_that_failed_first_is_named_with_its_last_line_and_log(script, tmp_path, capfd):
    words = script(
        """
        if rank == 1:
            raise RuntimeError("the first error")
        time.sleep(250)  # the test ends before
        """
    )
    assert run(tmp_path, words) == 1
    error = capfd.readouterr().err
    assert f"rank 1 on {os.uname().nodename} failed first, exit code 1: RuntimeError: the first error" in error
    assert str(logs(tmp_path)[0] / "rank1.err") in error
    assert "Traceback" not in error
    assert "torch" not in error


def test_a_killed_worker_is_named_with_its_signal(script, tmp_path, capfd):
    words = script("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)")
    assert run(tmp_path, words) == 128 + 9
    assert "rank 1 on" in (error := capfd.readouterr().err)
    assert "killed by SIGKILL" in error


def test_ranks_that_lost_another_or_were_ended_are_not_the_first() -> None:
    lost = Failure(0, 1, "RanksLost", "gone", 1.0)
    ended = Failure(1, -signal.SIGTERM, "", "", 0.0)
    cause = Failure(2, -signal.SIGKILL, "", "", 5.0)
    later = Failure(3, 1, "RuntimeError", "", 6.0)
    assert first([lost, ended, later, cause]) is cause
    assert first([ended, lost]) is lost
    # One that hung and was killed by the agent 30 s after the first failure; who lost it names it.
    hung = Failure(1, -signal.SIGKILL, "", "", 31.0)
    names = Failure(0, 1, "RanksLost", "gone\nrank 1 on node is stopped", 1.0)
    assert first([hung, names]) is names
    said = told(names, Path("log"), 1)
    assert "lost the others, exit code 1: RanksLost: gone; rank 1 on node is stopped" in said


@pytest.mark.parametrize(
    ("kind", "nodes", "said"),
    [
        ("RanksLost", 2, "lost the others (the first failure is on another machine, or the network's)"),
        ("RanksLost", 1, "lost the others (none of them failed)"),
        ("ValueError", 2, "failed first of this machine's, "),
        ("ValueError", 1, "failed first, "),
    ],
)
def test_what_failed_on_other_machines_is_not_claimed(kind, nodes, said):
    assert said in told(Failure(1, 1, kind, "gone", 1.0), Path("log"), nodes)


def test_one_machine_alone_is_told_nothing_of_others(script, tmp_path, monkeypatch):
    error = elastic.explained(RendezvousError("no store"), LaunchConfig())
    assert isinstance(error, RanksLost)
    assert "None" not in str(error)
    assert "machines" not in str(error)
    monkeypatch.setattr(elastic.Job, "_wait", lambda job, *_: setattr(job, "_stuck", True))
    with pytest.raises(RanksLost, match=r"agent hangs; see .*logs"):
        run(tmp_path, script("pass"))


USER_ERROR = (
    LISTEN
    + """
from yarn_train.errors import ConfigError
if rank == 0:
    time.sleep(0.5)
cli.PATIENCE = 2.0
cli.fail(ConfigError("wrong: 1; allowed: 2"))
"""
)


@pytest.mark.parametrize("restarts", [0, 2])
def test_an_error_of_the_user_is_told_once_is_not_tried_again_and_leaves_nothing(script, tmp_path, capfd, restarts):
    assert run(tmp_path, script(USER_ERROR), max_restarts=restarts) == 2
    error = capfd.readouterr().err
    assert error.count("wrong: 1; allowed: 2") == 1
    assert "failed first" not in error
    assert not (tmp_path / "run").exists()


def test_a_start_that_finds_the_folder_taken_leaves_no_trace_in_it(script, tmp_path):
    (tmp_path / "run/logs/theirs").mkdir(parents=True)
    record = tmp_path / "run/run.json"
    record.write_text('{"versions": {}, "exit_reason": null, "starts": [{"time": "2026-01-01", "launch": "theirs"}]}')
    before = record.read_text()
    taken = USER_ERROR.replace("ConfigError", "RunFolderTaken")
    assert run(tmp_path, script(taken)) == 2
    assert record.read_text() == before
    assert [entry.name for entry in (tmp_path / "run/logs").iterdir()] == ["theirs"]


def test_a_launcher_whose_run_folder_was_deleted_still_gives_the_code(script, tmp_path, capfd):
    gone = "import shutil\nshutil.rmtree(here / 'run', ignore_errors=True)\n" + USER_ERROR
    assert run(tmp_path, script(gone)) == 2
    assert "wrong: 1; allowed: 2" in capfd.readouterr().err


def test_an_error_of_one_rank_alone_is_told_too_and_a_run_that_exists_keeps_its_logs(script, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"versions": {}}')
    words = script(USER_ERROR.replace("if rank == 0:", "if rank == 0:\n    time.sleep(60)\nif rank == 1:"))
    assert run(tmp_path, words) == 2
    error = capfd.readouterr().err
    assert "rank 1" in error
    assert "wrong: 1; allowed: 2" in error
    assert (logs(tmp_path)[0] / "rank1.err").exists()


def test_workers_are_started_again_as_often_as_allowed(script, tmp_path, capfd):
    words = script("print('attempt', attempt); sys.exit(5 if attempt < 2 and rank == 1 else 0)")
    assert run(tmp_path, words, max_restarts=2) == 0
    assert capfd.readouterr().err.count("starting the workers again") == 2
    (start,) = logs(tmp_path)
    assert (start / "restart2/rank1.out").read_text() == "attempt 2\n"
    assert (start / "rank1.out").read_text() == "attempt 0\n"
    assert run(tmp_path, words, max_restarts=1) == 5


STOPPABLE = (
    LISTEN
    + """
from yarn_train.dist import stop
stop.TOGETHER = 300.0  # the second signal comes within it on any machine
try:
    with requests.deferred():
        (here / f"ready{rank}").touch()
        while not requests.noted:
            time.sleep(0.01)
        (here / f"noted{rank}").touch()
        while not (here / "go").exists():  # the step and its checkpoint
            time.sleep(0.01)
        (here / f"saved{rank}").write_text(str(requests.noted))
except KeyboardInterrupt as interrupt:
    cli.leave(interrupt)
"""
)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)],
)
def test_a_request_to_stop_lets_every_worker_finish(script, tmp_path, capfd, monkeypatch, number, code):
    def then() -> None:
        ask(number)
        wait_for(lambda: all((tmp_path / f"noted{rank}").exists() for rank in (0, 1)), 100)
        ask(number)  # schedulers send more than one; together they are one request
        time.sleep(0.2)
        (tmp_path / "go").touch()

    monkeypatch.setattr(requests, "TOGETHER", 300.0)
    assert run_while(tmp_path, script(STOPPABLE), then) == code
    assert all((tmp_path / f"saved{rank}").exists() for rank in (0, 1))
    assert capfd.readouterr().err.count("the same command goes on") == 1


def test_a_worker_that_is_killed_while_it_saves_is_a_failure(script, tmp_path, capfd):
    def then() -> None:
        ask(signal.SIGTERM)
        wait_for((tmp_path / "noted0").exists, 100)
        (tmp_path / "go").touch()

    save = '(here / f"saved{rank}")'
    dies = STOPPABLE.replace(save, f"if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n        {save}")
    assert run_while(tmp_path, script(dies), then) == 128 + 9
    assert "rank 1 on" in (error := capfd.readouterr().err)
    assert "killed by SIGKILL" in error


WAITS = (
    LISTEN
    + """
import datetime
from torch.distributed import TCPStore
store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
try:
    (here / f"ready{rank}").touch()
    if rank == 1:  # inside of C++, where no Python signal handler runs
        store.wait(["never"], datetime.timedelta(seconds=250))
    time.sleep(250)
except KeyboardInterrupt as interrupt:
    cli.leave(interrupt)
"""
)


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_worker_that_waits_for_one_that_stopped_is_ended(script, tmp_path, capfd, monkeypatch, restarts):
    monkeypatch.setattr(elastic, "LATE", 0.5)
    assert run_while(tmp_path, script(WAITS), lambda: ask(signal.SIGTERM), max_restarts=restarts) == 75
    error = capfd.readouterr().err
    assert error.count("the same command goes on") == 1
    assert "failed" not in error
    assert "again" not in error


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_a_request_reaches_workers_that_were_not_there_or_did_not_listen_yet(script, tmp_path, delay):
    lines = "try: time.sleep(100)\nexcept KeyboardInterrupt as interrupt: cli.leave(interrupt)"
    process = start(tmp_path, script(LISTEN + lines), max_restarts=1)
    wait_for(lambda: (tmp_path / "run/logs").exists())
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 75, error


DEAF = """
def hear(*_):
    heard.append(1)
    (here / f"heard{rank}_{len(heard)}").touch()
heard = []
for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(n, hear)
(here / f"ready{rank}").touch()
while True:
    time.sleep(100)
"""


def test_a_third_request_ends_workers_that_do_not_listen(script, tmp_path, monkeypatch):
    def then() -> None:
        workers = children(os.getpid())
        for number in (1, 2):
            ask(signal.SIGINT)
            wait_for(lambda n=number: all((tmp_path / f"heard{rank}_{n}").exists() for rank in (0, 1)), 100)
        assert set(workers) <= set(children(os.getpid()))
        ask(signal.SIGINT)

    monkeypatch.setattr(requests, "TOGETHER", 0.0)
    assert run_while(tmp_path, script(DEAF), then) == 130


def test_a_request_reaches_nobody_where_all_workers_ended_just_now():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with requests.Forward(lambda: [ended.pid]) as forward:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert forward.requested == signal.SIGUSR1


@pytest.mark.parametrize("waitid", [True, False])
def test_a_worker_runs_until_it_is_collected_or_better_until_it_ends(monkeypatch, waitid):
    if not waitid:  # macOS before Python 3.13
        monkeypatch.delattr(os, "waitid", raising=False)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert requests.is_running(process.pid)
    process.communicate(b"\n")
    assert not requests.is_running(process.pid)


def test_workers_do_not_outlive_a_killed_launcher(script, tmp_path):
    process = start(tmp_path, script(LISTEN + READY + "time.sleep(100)"))
    wait_for(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)))
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=100)
    wait_for(lambda: not any(map(environ, workers)), 60)


def test_two_machines_meet(script, tmp_path):
    words = script("print(rank, os.environ['WORLD_SIZE'], os.environ['GROUP_RANK'])")
    port = free_port()
    options = {"nnodes": 2, "rendezvous": f"localhost:{port}", "nproc_per_node": 1}
    processes = [start(tmp_path, words, **options) for _ in range(2)]
    output = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    assert sum("0 2 0" in out for out, _ in output) == 1  # the console of rank 0's machine
    files = [file for start in logs(tmp_path) for file in start.glob("rank*.out")]
    assert sorted(file.read_text() for file in files) == ["0 2 0\n", "1 2 1\n"]


def test_a_machine_that_waits_for_others_stops_at_once_or_says_who_is_missing(script, tmp_path):
    options = {"nnodes": 2, "rendezvous": f"localhost:{free_port()}", "nproc_per_node": 1}
    process = start(tmp_path, script("pass"), **options)
    wait_for(lambda: (tmp_path / "run/logs").exists())
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 75
    with pytest.raises(RanksLost, match=r"2 machines must start the same command within launch.timeout=1 seconds"):
        run(tmp_path, script("pass"), **options, timeout=1.0)


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(("wanted", "present", "workers"), [("gpu", 8, 8), (4, 8, 4), (8, 8, 8), (3, 0, 3)])
def test_workers_are_counted_against_the_gpus_present(monkeypatch, wanted, present, workers):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    assert counts.count_workers(LaunchConfig(nproc_per_node=wanted)) == workers


@pytest.mark.parametrize(("wanted", "present", "said"), [("gpu", 0, "no CUDA GPU"), (9, 8, "<= 8")])
def test_more_workers_than_gpus_are_refused(monkeypatch, wanted, present, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    with pytest.raises(ConfigError, match=said):
        counts.count_workers(LaunchConfig(nproc_per_node=wanted))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"nproc_per_node": 4}, []),
        ({"nproc_per_node": 4, "nnodes": 2, "max_restarts": 3}, []),
        ({"nproc_per_node": 8}, ["launch.nproc_per_node"]),
        ({"nproc_per_node": "gpu"}, ["launch.nproc_per_node"]),
        ({"nproc_per_node": 4, "nnodes": 3, "max_restarts": 1}, ["launch.nnodes", "launch.max_restarts"]),
        ({"nproc_per_node": 4, "nnodes": 2, "rendezvous": "a:1"}, ["launch.rendezvous"]),
    ],
)
def test_options_that_contradict_torchrun_are_refused(monkeypatch, options, wrong):
    told = {"RANK": 0, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4}
    told |= {"TORCHELASTIC_MAX_RESTARTS": 3, "TORCHELASTIC_RUN_ID": "run"}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    launch = LaunchConfig(**options)
    if not wrong:
        assert elastic.run_workers(launch, Path("never"), []) is None
        return
    with pytest.raises(ConfigError) as refused:
        elastic.run_workers(launch, Path("never"), [])
    assert [p.partition(":")[0] for p in refused.value.problems] == wrong
    assert "torchrun" in str(refused.value)


def test_another_launcher_is_told_by_its_variables_and_not_called_torchrun(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    launch = LaunchConfig(nproc_per_node=8, nnodes=3, max_restarts=1, rendezvous="a:1")
    with pytest.raises(ConfigError) as refused:
        elastic.run_workers(launch, Path("never"), [])
    assert len(refused.value.problems) == 4
    assert all("RANK and WORLD_SIZE are set" in text and "torchrun" not in text for text in refused.value.problems)
