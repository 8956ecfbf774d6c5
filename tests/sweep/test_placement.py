"""GPUs for jobs, with an nvidia-smi of our own, real processes and real locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT

from yarn_train.dist import environment
from yarn_train.errors import ConfigError
from yarn_train.sweep import gpus, placement
from yarn_train.sweep.placement import placed

COUNT = 4
HOLD = """
import sys, time
from yarn_train.sweep import placement
placement.INTERVAL = 0.05
with placement.placed(int(sys.argv[1]), 1) as mine:
    print(",".join(mine.devices), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four GPUs: nvidia-smi comes first on the path; a line in `apps` is a process that computes."""
    file, apps = tmp_path / "bin" / "nvidia-smi", tmp_path / "apps"
    file.parent.mkdir()
    apps.write_text("")
    rows = "\n".join(f'echo "{n}, GPU-{n}{n}, H100, 81559, 4, 31, 1, 1, 0, Disabled"' for n in range(COUNT))
    file.write_text(f'#!/bin/sh\ncase "$*" in\n*query-gpu*) {rows} ;;\n*compute-apps*) cat {apps} ;;\nesac\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(placement, "INTERVAL", 0.05)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield apps
    tempfile.tempdir = None


Holder = Callable[[int], "subprocess.Popen[str]"]


@pytest.fixture
def holder(smi: Path) -> Iterator[Holder]:
    """holder(n) is a process that asks for n GPUs and holds them until a line comes in."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", HOLD, str(count)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        with process:  # waits, and closes the pipes
            process.kill()


def got(process: subprocess.Popen[str]) -> set[str]:
    assert process.stdout
    return set(process.stdout.readline().strip().split(","))


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait(timeout=20)


def test_jobs_never_share_a_gpu(holder: Holder) -> None:
    first, second = holder(2), holder(1)
    a, b = got(first), got(second)
    with placed(1, 1) as mine:
        assert (len(a), len(b)) == (2, 1)
        assert a | b | set(mine.devices) == {"0", "1", "2", "3"}
        (name,) = mine.devices
        assert mine.environment == {"CUDA_VISIBLE_DEVICES": f"GPU-{name}{name}"}


def test_a_job_that_was_killed_holds_nothing(holder: Holder) -> None:
    process = holder(COUNT)
    assert len(got(process)) == COUNT
    process.send_signal(signal.SIGKILL)
    process.wait()
    with placed(COUNT, 1) as mine:
        assert len(mine.devices) == COUNT


def test_who_has_to_wait_says_so_once_and_gets_what_the_others_leave(holder: Holder) -> None:
    first, second = holder(3), holder(1)
    got(first), got(second)
    said: list[str] = []
    later = threading.Timer(0.5, let_go, [first])
    later.start()
    with placed(2, 1, said.append) as mine:
        assert len(mine.devices) == 2
    later.join()  # the process belongs to one thread at a time
    assert len(said) == 1
    assert said[0].startswith("waiting for 2 free GPUs, 0 now: 0: another job of a sweep; ")


def test_a_large_job_is_not_passed_by_small_ones_for_ever(holder: Holder) -> None:
    """Two small ones, a large one that waits, then small ones that came later: the large one is next."""
    small = [holder(1), holder(1)]
    for process in small:
        got(process)
    large = holder(COUNT)
    assert large.stderr
    assert "waiting for 4 free GPUs, 2 now" in large.stderr.readline()
    late = holder(1)
    assert late.stderr
    assert "another job of a sweep waits for them already" in late.stderr.readline()
    let_go(small[0])
    time.sleep(0.3)
    assert late.poll() is None
    let_go(small[1])
    assert len(got(large)) == COUNT
    let_go(large)
    assert len(got(late)) == 1


def test_gpus_that_others_compute_on_are_left_alone(smi: Path) -> None:
    smi.write_text("GPU-00, 77, python, 9000\nGPU-22, 78, other, 5\n")
    said: list[str] = []
    with placed(2, 1) as mine:
        assert mine.devices == ("1", "3")
    later = threading.Timer(0.4, smi.write_text, [""])
    later.start()
    with placed(3, 1, said.append) as mine:
        assert mine.devices == ("0", "1", "2")
    later.join()
    assert said == ["waiting for 3 free GPUs, 2 now: 0: python (pid 77); 2: other (pid 78)"]


def test_memory_of_processes_that_cannot_be_seen_counts() -> None:
    row = "0, GPU-00, RTX, {}, {}, 31, 1, 1, 0, Disabled"
    used = [gpus._used_by(gpus.read_gpus(row.format(*sizes))[0], []) for sizes in ((81559, 9000), (24000, 2000))]
    assert used == ["processes that are not visible from here (8.8 GiB)", ""]


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [("3,1", ("3", "1")), ("GPU-2,0,9,1", ("2", "0")), ("1,1", ("1",)), ("MIG-a,0", ("MIG-a", "0"))],
)
@pytest.mark.usefixtures("smi")
def test_only_gpus_that_a_run_may_see_are_given(chosen: str, devices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    with placed(len(devices), 1) as mine:
        assert mine.devices == devices
    with pytest.raises(ConfigError, match=f"CUDA_VISIBLE_DEVICES={chosen}"), placed(len(devices) + 1, 1):
        pass


@pytest.mark.usefixtures("smi")
def test_more_gpus_than_there_are_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match=r"got 5; allowed: <= 4 \(GPUs of this machine\)"), placed(COUNT + 1, 1):
        pass


def test_locks_in_a_folder_of_somebody_else_are_refused(smi: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"yarn-train-gpus-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="another user"), placed(1, 1):
        pass


def test_without_gpus_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.shutil, "which", lambda name: None)
    monkeypatch.setattr(environment, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(workers: int, at_once: int) -> str | None:
        with placed(workers, at_once) as mine:
            assert mine.devices == ()
            return mine.environment.get("OMP_NUM_THREADS")

    assert [threads(1, 4), threads(2, 4), threads(0, 99), threads(1, 1)] == ["4", "2", "1", None]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(1, 4) is None
