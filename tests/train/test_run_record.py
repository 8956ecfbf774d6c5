"""run.json and the run folder when something else than the run itself meddles: launchers, stops, deletions."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yarn_train import app
from yarn_train.checkpoint.manager import complete_checkpoints
from yarn_train.config import Config
from yarn_train.dist import heartbeat, others
from yarn_train.dist.stop import StopRequested
from yarn_train.errors import DataError, StorageError
from yarn_train.train import loop, run_folder, run_lock

Train = Callable[..., Path]


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_a_launcher_records_how_its_own_start_failed_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    before = time.time()
    run_folder.start_record(tmp_path, Config(), 2, "cpu")
    run_folder.record_failure(tmp_path, "failed: refused", "second", before)
    assert record(tmp_path)["exit_reason"] is None  # it goes on
    run_folder.record_failure(tmp_path, "failed: refused", "first", before + 60)  # several machines: the same id again
    assert record(tmp_path)["exit_reason"] is None
    run_folder.record_failure(tmp_path, "failed: killed", "first", before)
    assert record(tmp_path)["exit_reason"] == "failed: killed"


def test_a_stop_in_preparation_is_recorded_and_the_next_start_may_have_other_options(
    train: Train, tiny_args, tmp_path, monkeypatch
):
    def stopped(*_: object) -> None:
        raise StopRequested(15)

    monkeypatch.setattr(app, "stage_data", stopped)
    with pytest.raises(StopRequested):
        train(tmp_path / "run", *tiny_args)
    assert record(tmp_path / "run")["exit_reason"] == "stopped by SIGTERM"
    state = others.read(tmp_path / "run/heartbeat", 0)
    assert state is not None
    assert (state["phase"], state["ended"]) == ("prepare data", "StopRequested: stopped by SIGTERM")
    monkeypatch.undo()
    train(tmp_path / "run", *tiny_args, "train.steps=2")
    assert record(tmp_path / "run")["exit_reason"] == "complete"
    assert len(record(tmp_path / "run")["starts"]) == 2


def test_an_error_of_the_user_in_preparation_leaves_nothing(train: Train, tiny_args, tmp_path, monkeypatch):
    def wrong(*_: object) -> None:
        raise DataError("no such books")

    monkeypatch.setattr(app, "stage_data", wrong)
    with pytest.raises(DataError):
        train(tmp_path / "run", *tiny_args)
    assert not any((tmp_path / "run").iterdir())


def test_ranks_that_have_not_met_leave_the_heartbeats_of_a_run_that_goes_on(tmp_path, monkeypatch):
    theirs = tmp_path / "heartbeat/rank1.json"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    monkeypatch.setenv("RANK", "1")
    beat = heartbeat.Heartbeat()
    with beat.watched(tmp_path, 60, together=False):
        pass
    assert theirs.read_text() == "theirs"
    with beat.watched(tmp_path, 60, together=False):
        beat.together = True
    assert others.read(tmp_path / "heartbeat", 1) is not None


@pytest.mark.parametrize("act", ["delete", "move"])
def test_a_run_folder_that_goes_away_stops_the_run_and_stays_away(train: Train, tiny_args, tmp_path, monkeypatch, act):
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    run, real = tmp_path / "run", loop.train_step

    def step(trainer: loop.Trainer, data: Any) -> dict[str, Any]:
        if trainer.state.step == 4:
            trainer.checkpoints.finish()
            shutil.rmtree(run) if act == "delete" else run.rename(tmp_path / "moved")
            time.sleep(0.1)
        return real(trainer, data)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(StorageError, match=r"the run folder is gone: .*run.\.lock .*deleted, moved or replaced"):
        train(run, *tiny_args, "model.dtype=float32")
    assert not run.exists()
    monkeypatch.undo()
    if act == "move":
        (tmp_path / "moved").rename(run)
        train(run, *tiny_args, "model.dtype=float32")
        assert record(run)["exit_reason"] == "complete"


def test_a_folder_of_nothing_but_checkpoints_goes_on(train: Train, tiny_args, tmp_path, capsys):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=4")
    for entry in run.iterdir():
        if entry.name != "01_s4":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in (run / "01_s4").iterdir():
        if entry.name != "checkpoints":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert len(complete_checkpoints(run / "01_s4/checkpoints")) == 2
    run_lock.refuse_foreign(run)
    train(run, *tiny_args)
    assert [row["step"] for row in map(json.loads, (run / "01_s4/metrics.jsonl").read_text().splitlines())] == [
        *range(5, 9)
    ]
