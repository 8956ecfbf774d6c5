"""A rank fails in mid-run: all ranks end soon, the first failure is what the user reads, and the next start goes on."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, child_env, course, metrics

HERE = platform.node()
FAULTY = str(Path(__file__).with_name("faulty.py"))
LAUNCHERS = {
    "torchrun": ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", FAULTY], []),
    "own": ([sys.executable, FAULTY], ["launch.nproc_per_node=2"]),
}
# What each launcher's user reads of rank 1's failure, and run.json says: exit code of our own launcher, words.
FAULTS = {
    "raise": (1, "RuntimeError: the first error"),
    "kill": (128 + 9, "is gone: it was killed, or crashed"),
    "segfault": (128 + 11, "is gone: it was killed, or crashed"),
    "hang": (1, "is stopped: by SIGSTOP, or a debugger"),
}
OPTIONS = ("model.dtype=float32", "checkpoint.every=2", "launch.timeout=15", "launch.stall_after=3", "plan.check=off")


def start(launcher: str, fault: str, words: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """The run's end, and seconds since the fault (or since its beginning without one)."""
    command, extra = LAUNCHERS[launcher]
    once = Path(fault.rpartition(":")[2])
    env = {**child_env(), "YARN_TRAIN_TEST_FAULT": fault}
    began = time.time()
    done = subprocess.run([*command, *words, *extra], cwd=ROOT, env=env, capture_output=True, text=True, timeout=250)
    return done, time.time() - (once.stat().st_mtime if once.exists() else began)


@pytest.fixture
def words(tiny_args: list[str], tmp_path: Path) -> list[str]:
    return [*tiny_args, *OPTIONS, f"run.dir={tmp_path / 'run'}"]


def reason(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["exit_reason"])


CASES = [
    pytest.param(launcher, act, marks=[] if (launcher, act) == ("own", "kill") else pytest.mark.long)
    for launcher in LAUNCHERS
    for act in FAULTS
]


@pytest.mark.parametrize(("launcher", "act"), CASES)
def test_all_ranks_end_with_the_first_failure_on_top_and_the_next_start_goes_on(launcher, act, words, tmp_path):
    code, told = FAULTS[act]
    run, once = tmp_path / "run", tmp_path / "once"
    failed, seconds = start(launcher, f"{act}:1:5:{once}", words)
    assert failed.returncode == (code if launcher == "own" else 1), failed.stderr
    assert seconds < 60
    said = reason(run)
    if launcher == "own":
        # A rank that is killed within its first second has no heartbeat that says where it was.
        where = r"(,| at (step \d in )?phase \w)" if act in ("kill", "segfault") else r" at (step \d in )?phase \w"
        words_of_launcher = rf"rank \d on \S+ (failed first|lost the others){where}"
        (first,) = (line for line in failed.stderr.splitlines() if re.match(words_of_launcher, line))
        assert first.startswith(f"rank {0 if act == 'hang' else 1} on {HERE} ")
        assert act != "hang" or told in first
    assert "lost contact with other ranks" in said or act in ("kill", "segfault", "raise")
    assert f"rank 1 on {HERE}" in said
    assert told in said or (launcher == "own" and "killed by SIG" in said)
    if act == "hang":
        assert f"[rank 0 on {HERE}] rank 1 on {HERE}" in failed.stderr
        assert "stalled for" in failed.stderr
    again, _ = start(launcher, f"{act}:1:5:{once}", words)
    assert again.returncode == 0, again.stderr
    assert "resumed from" in again.stdout
    assert [row["step"] for row in metrics(run / "01_s4")] == [*range(1, 9)]
    assert reason(run) == "complete"


@pytest.mark.long
def test_a_data_file_that_is_cut_short_while_it_is_read_ends_the_run(words, tmp_path):
    failed, seconds = start("own", f"truncate:1:3:{tmp_path / 'once'}", [*words, "data.prefetch=0"])
    assert failed.returncode == 128 + 7
    assert seconds < 60
    assert "killed by SIGBUS (a file that it read was cut short" in failed.stderr


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_workers_that_are_started_again_end_as_if_nothing_had_happened(launcher, words, tmp_path, train):
    command, extra = LAUNCHERS[launcher]
    whole = [*words[:-1], f"run.dir={tmp_path / 'whole'}"]
    unhurt, _ = start(launcher, f"kill:7:0:{tmp_path / 'never'}", whole)
    assert unhurt.returncode == 0, unhurt.stderr
    restarts = [*command[:-1], "--max-restarts=1", FAULTY] if launcher == "torchrun" else command
    more = extra if launcher == "torchrun" else [*extra, "launch.max_restarts=1"]
    env = {k: v for k, v in child_env().items() if k != "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}
    env["YARN_TRAIN_TEST_FAULT"] = f"kill:1:5:{tmp_path / 'once'}"
    done = subprocess.run([*restarts, *words, *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "once").exists()
    assert len(json.loads((tmp_path / "run/run.json").read_text())["starts"]) == 2
    assert course(tmp_path / "run/01_s4") == course(tmp_path / "whole/01_s4")
    weights = [(tmp_path / name / "01_s4/model/model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]
