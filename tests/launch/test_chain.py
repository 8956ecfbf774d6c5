"""launch/chain.sh: the order of its steps, where it stops, and the real thing in miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, child_env

CHAIN = ROOT / "launch/chain.sh"
# Writes down what it is asked to run, and fails where it is told to.
RECORDER = """#!/usr/bin/env bash
echo "$*" >>"$RECORD"
case "$*" in *"${HANG_AT:-nothing}"*) touch "$RECORD.hangs"; sleep 3; touch "$RECORD.awake" ;; esac
case "$*" in *"${FAIL_AT:-nothing}"*) echo "to make it fit"; exit 7 ;; esac
case "$*" in *yarn_train.plan*) echo "  total      400 steps, 20.5 h" ;; esac
"""


def recorder(tmp_path: Path, **given: str) -> dict[str, str]:
    """The environment of a chain whose Python only records."""
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python), "RECORD": str(tmp_path / "record"), "NPROC_PER_NODE": "8"}
    env |= {"LOG_DIR": str(tmp_path / "logs"), "OUT": str(tmp_path / "out"), **given}
    for run, stage in (("yarn_llama2_13b_64k", "01_s16"), ("yarn_llama2_13b_128k", "01_s32")):
        (tmp_path / "out" / run / stage / "model").mkdir(parents=True, exist_ok=True)
    return env


def recorded(tmp_path: Path, *words: str, **given: str) -> tuple[int, list[str], str]:
    """Exit code, the commands and the output of the chain with a Python that only records."""
    env = recorder(tmp_path, **given)
    done = subprocess.run([str(CHAIN), *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, (tmp_path / "record").read_text().splitlines(), done.stdout + done.stderr


def test_the_steps_come_in_order_with_the_options_and_hours(tmp_path: Path) -> None:
    code, commands, output = recorded(tmp_path, "train.micro_batch_size=2", SIZE="13b")
    assert code == 0, output
    steps = ["data/prepare.py", *("yarn_train.plan", "train.py", "yarn_train.eval") * 2]
    assert [step in command for step, command in zip(steps, commands, strict=True)] == [True] * 7
    assert all("train.micro_batch_size=2" in command for command in commands)
    assert ["128k" in command.partition("run.init_from")[0] for command in commands] == [False] * 4 + [True] * 3
    assert f"run.init_from={tmp_path}/out/yarn_llama2_13b_64k" in commands[5]
    assert f"model.path={tmp_path}/out/yarn_llama2_13b_128k/01_s32/model" in commands[6]
    assert output.count("20.5 h") == 2
    assert "plan.gpus=8" in commands[1]


@pytest.mark.parametrize(
    ("where", "code", "steps"),
    [("prepare", 7, 1), ("yarn_train.plan", 7, 2), ("train.py", 7, 3), ("yarn_train.eval", 7, 4)],
)
def test_it_stops_at_the_first_failure(tmp_path: Path, where: str, code: int, steps: int) -> None:
    got, commands, output = recorded(tmp_path, SIZE="13b", FAIL_AT=where)
    assert (got, len(commands)) == (code, steps), output
    assert "to make it fit" in output  # what a plan says that does not fit


@pytest.mark.parametrize(("where", "code", "steps", "awakes"), [("prepare", 143, 1, False), ("plan", 75, 2, True)])
def test_a_request_ends_the_step_at_hand_and_the_chain(tmp_path, where, code, steps, awakes):
    env = recorder(tmp_path, SIZE="13b", HANG_AT=where, NPROC_PER_NODE="4", NNODES="2")
    chain = subprocess.Popen([str(CHAIN)], cwd=tmp_path, env=env)
    end = time.monotonic() + 30
    while not (tmp_path / "record.hangs").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    chain.terminate()
    assert chain.wait(30) == code
    commands = (tmp_path / "record").read_text().splitlines()
    assert len(commands) == steps
    assert (tmp_path / "record.awake").exists() == awakes
    assert "plan.gpus=8" in commands[-1] or where == "prepare"


@pytest.mark.long
def test_it_runs_in_miniature_and_again_without_training(tmp_path: Path) -> None:
    options = ["data.seq_len=64", "train.steps=2", "schedule.warmup_steps=1", "train.global_batch_size=2"]
    options += ["train.micro_batch_size=1", "eval.documents=1", "eval.windows=[64]"]
    env = {**child_env(), "PYTHON": sys.executable, "NPROC_PER_NODE": "2", "GPUS": "2", "OUT": str(tmp_path)}
    env |= {"FIRST": "extend", "SECOND": "smoke", "LOG_DIR": str(tmp_path / "logs")}
    for _ in range(2):
        done = subprocess.run(
            [str(CHAIN), *options], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for run, stage, factor in (("extend", "01_s8", 8.0), ("smoke", "01_s16", 16.0)):
        config = json.loads((tmp_path / run / stage / "model/config.json").read_text())
        assert config["rope_parameters"]["factor"] == factor
        assert len((tmp_path / run / stage / "metrics.jsonl").read_text().splitlines()) == 2
    assert done.stdout.count("perplexity ") >= 2
