"""A save under way and the training beside it: what an error leaves, and which seconds count as standing still."""

from __future__ import annotations

import time

import pytest
from support import metrics

from yarn_train.checkpoint import safetensors_file
from yarn_train.checkpoint.complete import complete_checkpoints
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.data.stream import Stream
from yarn_train.engine.fsdp2 import FSDP2Engine
from yarn_train.errors import DataError, RanksLost


def slow_files(patch, seconds):
    write = safetensors_file.write
    patch.setattr(safetensors_file, "write", lambda path, parts: (time.sleep(seconds), write(path, parts))[1])


@pytest.mark.parametrize(
    ("error", "complete"), [(DataError("torn"), 1), (ValueError("bug"), 1), (RanksLost("gone"), 0)]
)
def test_an_error_does_not_take_a_save_along_unless_the_others_are_gone(
    train, tiny_args, tmp_path, monkeypatch, error, complete
):
    slow_files(monkeypatch, 0.5)
    rows = Stream.rows
    began = CheckpointManager._run

    def torn(stream, ids):
        if saving:
            raise error
        return rows(stream, ids)

    saving: list[bool] = []
    monkeypatch.setattr(Stream, "rows", torn)
    monkeypatch.setattr(CheckpointManager, "_run", lambda self, save: (saving.append(True), began(self, save)))
    with pytest.raises(type(error)):
        train(tmp_path / "run", *tiny_args, "checkpoint.every=2", "data.prefetch=0")
    assert len(complete_checkpoints(tmp_path / "run/01_s4/checkpoints")) == complete


def test_all_of_the_stall_is_in_the_next_row_and_the_last_ones_is_said(train, tiny_args, tmp_path, monkeypatch, capsys):
    finite = FSDP2Engine.weights_finite
    monkeypatch.setattr(FSDP2Engine, "weights_finite", lambda engine: (time.sleep(0.3), finite(engine))[1])
    slow_files(monkeypatch, 0.1)
    args = [*tiny_args, "train.steps=3", "checkpoint.every=1"]
    stage = train(tmp_path / "run", *args) / "01_s4"
    rows = metrics(stage)
    assert rows[0]["save_seconds"] == 0
    assert all(row["save_seconds"] > 0.3 for row in rows[1:])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "until its checkpoint was complete" in line]
    assert line.startswith("after step 3, ")
    assert float(line.split()[3]) >= 0.6


def test_a_batch_line_counts_what_was_trained_with_other_batches(train, tiny_args, tmp_path, capsys):
    args = [*tiny_args, "train.stop_after=3"]
    train(tmp_path / "run", *args)
    capsys.readouterr()
    own = [
        "train.global_batch_size=8",
        "train.micro_batch_size=4",
        "run.allow_change=[train.global_batch_size]",
        "train.stop_after=4",
    ]
    rows = metrics(train(tmp_path / "run", *tiny_args, *own) / "01_s4")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch: ")]
    assert f"8 steps = {rows[2]['tokens'] + 5 * rows[3]['step_tokens']:,} tokens" in line
