"""Stop + resume equals uninterrupted, bit for bit, whether stopped cleanly or killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import child_env, course, launch_command, metrics, same_weights

from yarn_train.checkpoint.manager import complete_checkpoints
from yarn_train.errors import ConfigError


def test_stopped_and_resumed_equals_uninterrupted(train, tiny_args, tmp_path):
    whole = train(tmp_path / "whole", *tiny_args)
    train(tmp_path / "parts", *tiny_args, "train.stop_after=3")
    assert not (tmp_path / "parts/01_s4/model").exists()
    parts = train(tmp_path / "parts", *tiny_args)
    assert course(whole / "01_s4") == course(parts / "01_s4")
    assert same_weights(whole / "01_s4/model", parts / "01_s4/model")


def test_a_resumed_run_really_used_the_checkpoint(train, tiny_args, tmp_path, capsys):
    train(tmp_path / "run", *tiny_args, "train.stop_after=4")
    capsys.readouterr()
    train(tmp_path / "run", *tiny_args)
    assert "resumed from" in capsys.readouterr().out
    record = (tmp_path / "run/run.json").read_text()
    assert record.count('"time"') == 2


def test_two_ranks_resume_bit_for_bit_and_one_rank_keeps_their_sample_order(launch, train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    launch(*args, f"run.dir={tmp_path / 'whole'}", ranks=2)
    launch(*args, f"run.dir={tmp_path / 'parts'}", "train.stop_after=4", ranks=2)
    shutil.copytree(tmp_path / "parts", tmp_path / "fewer")
    launch(*args, f"run.dir={tmp_path / 'parts'}", ranks=2)
    assert course(tmp_path / "whole/01_s4") == course(tmp_path / "parts/01_s4")
    assert same_weights(tmp_path / "whole/01_s4/model", tmp_path / "parts/01_s4/model")

    train(tmp_path / "fewer", *args)  # the same checkpoint, resharded to one rank
    for one, two in zip(course(tmp_path / "fewer/01_s4"), course(tmp_path / "whole/01_s4"), strict=True):
        assert one[0:2] == two[0:2]
        assert one[2] == pytest.approx(two[2], rel=1e-5)
        assert one[5] == two[5]


def test_killed_while_training_continues_where_it_was(train, tiny_args, tmp_path):
    whole = train(tmp_path / "whole", *tiny_args)
    run = tmp_path / "killed"
    _kill_when(tiny_args, run, lambda: len(complete_checkpoints(run / "01_s4/checkpoints")) >= 1)
    assert not (run / "01_s4/model").exists()
    train(run, *tiny_args)
    assert course(whole / "01_s4") == course(run / "01_s4")
    assert same_weights(whole / "01_s4/model", run / "01_s4/model")


def test_killed_while_writing_a_checkpoint_continues_from_the_one_before(train, tiny_args, tmp_path):
    args = [*tiny_args, "train.steps=60", "checkpoint.every=1"]
    run = tmp_path / "killed"
    folder = run / "01_s4/checkpoints"
    _kill_when(args, run, lambda: len(complete_checkpoints(folder)) >= 2 and any(folder.glob(".step_*")))
    left = list(folder.glob(".step_*.incomplete"))
    newest = complete_checkpoints(folder)[-1].name
    train(run, *args, "train.stop_after=60")
    rows = course(run / "01_s4")
    assert [row[0] for row in rows] == list(range(1, 61))
    assert not list(folder.glob(".step_*.incomplete")), f"leftovers of {left} must be gone"
    assert int(newest[-8:]) < 60
    whole = train(tmp_path / "whole", *tiny_args, "train.steps=60")
    assert course(whole / "01_s4") == rows
    assert load_file(run / "01_s4/model/model.safetensors").keys()


def _kill_when(args: list[str], run: Path, condition) -> None:
    """Start train.py and kill -9 it as soon as the condition holds."""
    command = launch_command(*args, f"run.dir={run}")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=child_env())
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_way_out_that_the_memory_check_names_is_open_on_resume(train, tiny_args, tmp_path):
    args = [*tiny_args, "train.steps=2", "schedule.warmup_steps=1", "checkpoint.every=1"]
    train(tmp_path / "run", *args, "train.stop_after=1")
    with pytest.raises(ConfigError, match=r"plan\.check=warn"):
        train(tmp_path / "run", *args, "plan.memory_gib=0.0001")
    train(tmp_path / "run", *args, "plan.memory_gib=0.0001", "plan.check=warn")
    assert [row["step"] for row in metrics(tmp_path / "run/01_s4")] == [1, 2]
