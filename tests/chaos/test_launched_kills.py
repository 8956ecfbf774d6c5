"""The same with real launchers: whoever of a start's processes is killed, the next start goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import children
from support import ROOT, child_env, course, launch_command, same_weights

STARTS = int(os.environ.get("CHAOS_STARTS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
OPTIONS = ("model.dtype=float32", "train.steps=150", "checkpoint.every=3", "checkpoint.keep=2", "launch.timeout=30")
WITHIN = 60  # seconds until all processes of a start have ended


def start(run: Path, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [*launch_command(*words, "launch.nproc_per_node=2"), f"run.dir={run}"],
            cwd=ROOT,
            env=child_env(),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def session(leader: int) -> list[int]:
    """Process ids of a session that still run."""
    done = subprocess.run(["pgrep", "-s", str(leader)], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_whoever_of_a_start_is_killed_the_next_start_goes_on(launch, tiny_args, tmp_path):
    rng = random.Random(SEED)
    words = [*[a for a in tiny_args if not a.startswith(("train.steps", "checkpoint."))], *OPTIONS]
    launch(*words, f"run.dir={tmp_path / 'whole'}", ranks=2)
    run, log, killed = tmp_path / "run", tmp_path / "log", []
    for _ in range(STARTS):
        process = start(run, words, log)
        begun, moment = time.monotonic(), rng.uniform(4, 14)
        while time.monotonic() < begun + moment and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        victim = rng.choice([process.pid, *children(process.pid)])
        killed.append(victim == process.pid)
        os.kill(victim, signal.SIGKILL)
        assert process.wait(WITHIN) != 0
        deadline = time.monotonic() + WITHIN
        while session(process.pid):
            assert time.monotonic() < deadline, f"seed {SEED}: {session(process.pid)} still run"
            time.sleep(0.1)
    assert killed, "nobody was killed"
    process = start(run, words, log)
    assert process.wait(250) == 0, f"seed {SEED}\n{log.read_text()[-5000:]}"
    assert course(run / "01_s4") == course(tmp_path / "whole/01_s4"), f"seed {SEED}, killed launchers: {killed}"
    assert same_weights(run / "01_s4/model", tmp_path / "whole/01_s4/model")
