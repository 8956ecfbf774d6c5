"""A signal in mid-run: every rank saves the same step, the exit says so, and the same command goes on bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import ROOT, child_env, course, launch_command, metrics, same_weights

from yarn_train.dist import stop
from yarn_train.dist.stop import StopRequested, requests

STEPS = ("train.steps=60", "checkpoint.every=1000")  # no checkpoint but the last, and the one that is asked for


def begun(run: Path, process: subprocess.Popen[str], rows: int = 3) -> None:
    """Wait until so many steps are taken."""
    file, deadline = run / "01_s4/metrics.jsonl", time.monotonic() + 120
    while not (file.is_file() and len(file.read_text().splitlines()) >= rows):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(*overrides: str, ranks: int = 0) -> subprocess.Popen[str]:
    command = launch_command(*overrides, ranks=ranks)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=child_env(), stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_one_process_saves_and_says_so(train, tiny_args, tmp_path, number):
    run = tmp_path / "run"
    process = start(*tiny_args, *STEPS, f"run.dir={run}")
    begun(run, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 75), err
    step = len(metrics(run / "01_s4"))
    assert 3 <= step < 60
    assert [path.name for path in (run / "01_s4/checkpoints").iterdir()] == [f"step_{step:08d}"]
    reason = json.loads((run / "run.json").read_text())["exit_reason"]
    assert reason == f"stopped by {number.name} after step {step}, which is saved"
    assert "Traceback" not in err
    assert "the same command goes on" in err


def test_two_ranks_agree_on_the_step_even_when_one_is_asked(forked, tiny_args, tmp_path):
    args = [*tiny_args, *STEPS, "model.dtype=float32"]
    forked(*args, f"run.dir={tmp_path / 'whole'}")
    run = tmp_path / "parts"
    process = start(*args, f"run.dir={run}", ranks=2)
    begun(run, process)
    (second,) = (pid for pid in children(process.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(second, signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 1  # torchrun's word for exit codes that are not 0; its launchers of ours say 75
    assert "stopped by SIGUSR1" in json.loads((run / "run.json").read_text())["exit_reason"]
    forked(*args, f"run.dir={run}")
    assert course(run / "01_s4") == course(tmp_path / "whole/01_s4")
    assert same_weights(run / "01_s4/model", tmp_path / "whole/01_s4/model")


def test_the_time_limit_is_met_with_a_checkpoint_and_the_next_start_goes_on(train, tiny_args, tmp_path, monkeypatch):
    args = [*tiny_args, "train.steps=100000", "checkpoint.every=100000", "run.max_hours=1"]
    for start in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr(stop, "time", leaping_clock(patched, at=5, seconds=3600))
            said = f"stopped by run.max_hours=1.0 after step {5 * start}, which is saved"
            with pytest.raises(StopRequested, match=f"^{said}$") as end:
                train(tmp_path / "run", *args)
        assert end.value.exit_code == 75
        assert json.loads((tmp_path / "run/run.json").read_text())["exit_reason"] == said
        assert [row["step"] for row in metrics(tmp_path / "run/01_s4")] == [*range(1, 5 * start + 1)]
        assert (tmp_path / f"run/01_s4/checkpoints/step_{5 * start:08d}/COMPLETE").is_file()


def leaping_clock(patched: pytest.MonkeyPatch, at: int, seconds: float) -> SimpleNamespace:
    """A clock that says so much more from the end of the step of that number on, counted from the start of a run."""
    ended = 0
    after_step = stop.Requests.after_step

    def counted(self, save_seconds: float = 0.0) -> int:
        nonlocal ended
        ended += 1
        return after_step(self, save_seconds)

    patched.setattr(stop.Requests, "after_step", counted)
    return SimpleNamespace(monotonic=lambda: time.monotonic() + (seconds if ended >= at else 0.0))


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["own", "torchrun.sh"])
def test_the_time_limit_is_75_through_launchers(tiny_args, tmp_path, launcher):
    run = tmp_path / "run"
    words = [*tiny_args, "train.steps=100000", "checkpoint.every=100000", "run.max_hours=0.01", f"run.dir={run}"]
    own = [*launch_command(*words), "launch.nproc_per_node=2"]
    command = own if launcher == "own" else [str(ROOT / "launch/torchrun.sh"), *words]
    env = {**child_env(), "PYTHON": sys.executable, "NPROC_PER_NODE": "2", "LOG_DIR": str(tmp_path / "logs")}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - began < 36 + 20  # imports before, and the end of processes
    assert done.returncode == 75, done.stdout + done.stderr
    said = json.loads((run / "run.json").read_text())["exit_reason"]
    found = re.fullmatch(r"stopped by run.max_hours=0.01 after step (\d+), which is saved", said)
    assert found
    assert (run / f"01_s4/checkpoints/step_{int(found[1]):08d}/COMPLETE").is_file()
    assert f"{said}; the same command goes on" in done.stdout + done.stderr


def test_the_time_limit_interrupts_what_is_no_training(train, tiny_args, tmp_path, monkeypatch):
    from yarn_train import app

    monkeypatch.setattr(app, "stage_data", lambda *_: time.sleep(60))
    with pytest.raises(StopRequested, match=r"^stopped by run.max_hours=0.0001$"):
        train(tmp_path / "run", *tiny_args, "run.max_hours=1e-4")


def test_a_request_during_the_last_save_is_answered_before_the_export(train, tiny_args, tmp_path, monkeypatch):
    from yarn_train.checkpoint.manager import CheckpointManager

    saved = CheckpointManager.save

    def asked(manager, engine, state, began):
        stall = saved(manager, engine, state, began)
        requests.noted = signal.SIGTERM
        return stall

    monkeypatch.setattr(CheckpointManager, "save", asked)
    with pytest.raises(StopRequested, match="after step 8"):
        train(tmp_path / "run", *tiny_args, "checkpoint.every=8")
    assert not (tmp_path / "run/01_s4/model").exists()
    monkeypatch.undo()
    assert (train(tmp_path / "run", *tiny_args, "checkpoint.every=8") / "01_s4/model").exists()
