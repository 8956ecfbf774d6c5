"""Stop + resume equals uninterrupted, bit for bit, whether stopped cleanly or killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import child_env, course, launch_command, metrics, same_weights

from yarn_train.checkpoint.manager import complete_checkpoints
from yarn_train.data.stream import Stream
from yarn_train.errors import CheckpointError, ConfigError, DataError


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


@pytest.mark.long
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


@pytest.mark.long
def test_one_then_two_then_one_rank_read_what_an_uninterrupted_run_reads(launch, train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32", "train.global_batch_size=24"]  # 8 steps are more than one epoch
    whole = train(tmp_path / "whole", *args, "train.micro_batch_size=8") / "01_s4"
    parts = tmp_path / "parts"
    train(parts, *args, "train.micro_batch_size=4", "train.stop_after=2", "data.prefetch=0")
    launch(*args, f"run.dir={parts}", "train.micro_batch_size=3", "train.stop_after=5", ranks=2)
    train(parts, *args, "train.micro_batch_size=12", "data.prefetch=3")
    for ours, theirs in zip(metrics(parts / "01_s4"), metrics(whole), strict=True):
        assert [ours[key] for key in ("step", "tokens", "segments", "epoch")] == [
            theirs[key] for key in ("step", "tokens", "segments", "epoch")
        ]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert metrics(whole)[-1]["epoch"] > 1


def test_a_finished_epoch_is_followed_by_another_and_the_log_says_so(train, tiny_args, tmp_path, capsys):
    args = [*tiny_args, "train.global_batch_size=40", "train.micro_batch_size=40", "train.steps=5"]
    train(tmp_path / "run", *args, "train.stop_after=2")
    rows = metrics(train(tmp_path / "run", *args) / "01_s4")
    ids = [i for row in rows for i in row["segments"]]
    count = round(40 / rows[0]["epoch"])
    first, second = ids[:count], ids[count : 2 * count]
    assert sorted(first) == list(range(count))
    assert first != second
    assert len(set(second)) == len(second)
    assert [row["epoch"] for row in rows] == [40 * step / count for step in range(1, 6)]
    begins = 1 + count // 40
    out = capsys.readouterr().out
    assert out.count("epoch 2 begins") == 1
    assert f"01_s4  epoch 2 begins at step {begins}\n" in out
    newest = complete_checkpoints(tmp_path / "run/01_s4/checkpoints")[-1]
    (source,) = json.loads((newest / "train_state.json").read_text())["data"]
    assert [source[key] for key in ("epoch", "position", "segments")] == [200 // count, 200 % count, count]


@pytest.mark.parametrize("mask", ["none", "block"])
def test_reading_ahead_changes_nothing(train, tiny_args, tmp_path, mask):
    args = [*tiny_args, f"data.document_mask={mask}"]
    asked, ahead = (train(tmp_path / name, *args, f"data.prefetch={name}") for name in ("0", "3"))
    assert course(asked / "01_s4") == course(ahead / "01_s4")
    assert same_weights(asked / "01_s4/model", ahead / "01_s4/model")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_data_that_cannot_be_read_stops_the_step_that_needs_it(train, tiny_args, tmp_path, monkeypatch, prefetch):
    read = []
    original = Stream.rows

    def torn(stream, ids):
        read.append(ids)
        if len(read) > 3 * 4:
            raise DataError("data.cache: a page is torn")
        return original(stream, ids)

    monkeypatch.setattr(Stream, "rows", torn)
    with pytest.raises(DataError, match="a page is torn"):
        train(tmp_path / "run", *tiny_args, f"data.prefetch={prefetch}")
    assert len(metrics(tmp_path / "run/01_s4")) == 3
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_other_data_under_a_checkpoint_is_refused(train, tiny_args, books, tmp_path):
    own = shutil.copytree(books, tmp_path / "books")
    args = [*(a for a in tiny_args if not a.startswith(("data.path", "data.cache"))), f"data.path={own}"]
    run = train(tmp_path / "run", *args, f"data.cache={tmp_path / 'before'}", "train.stop_after=3")
    with (own / "train/train0.txt").open("a") as book:
        book.write("one more chapter\n" * 50)
    with pytest.raises(CheckpointError, match=r"(?s)other data.*then: pg19 \(.*now:  pg19 \("):
        train(run, *args, f"data.cache={tmp_path / 'after'}")
    moved = shutil.move(tmp_path / "before", tmp_path / "moved")
    train(run, *args, f"data.cache={moved}")  # the same data elsewhere is the same data
    assert len(metrics(run / "01_s4")) == 8


def test_a_checkpoint_from_before_data_had_names_resumes(train, tiny_args, tmp_path):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=4")
    (stored,) = (run / "01_s4/checkpoints").glob("step_00000004/train_state.json")
    fields = json.loads(stored.read_text())
    del fields["data"]
    stored.write_text(json.dumps(fields))
    train(run, *tiny_args)
    whole = train(tmp_path / "whole", *tiny_args)
    assert course(whole / "01_s4") == course(run / "01_s4")


@pytest.mark.long
def test_killed_while_training_continues_where_it_was(train, tiny_args, tmp_path):
    whole = train(tmp_path / "whole", *tiny_args)
    run = tmp_path / "killed"
    _kill_when(tiny_args, run, lambda: len(complete_checkpoints(run / "01_s4/checkpoints")) >= 1)
    assert not (run / "01_s4/model").exists()
    train(run, *tiny_args)
    assert course(whole / "01_s4") == course(run / "01_s4")
    assert same_weights(whole / "01_s4/model", run / "01_s4/model")


@pytest.mark.long
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


def test_a_mixture_keeps_its_shares_and_its_place(train, tiny_args, books, tmp_path):
    parts = {"new": 0.75, "old": 0.25}
    mixed = [f"+data.mixture.{name}={{weight: {weight}, source: pg19}}" for name, weight in parts.items()]
    mixed = [text.replace("}", f", path: {books}}}") for text in mixed]
    args = [a for a in tiny_args if not a.startswith(("data.source", "data.path"))]
    args += ["data.source=mixture", *mixed]
    whole = train(tmp_path / "whole", *args) / "01_s4"
    train(tmp_path / "parts", *args, "train.stop_after=3")
    assert course(train(tmp_path / "parts", *args) / "01_s4") == course(whole)
    rows = metrics(whole)
    (new, old) = rows[0]["epoch"].values()
    assert new == pytest.approx(3 * old)  # the same books, so as many segments
    count = round(3 / new)
    assert all(sum(i < count for i in row["segments"]) == 3 for row in rows)
