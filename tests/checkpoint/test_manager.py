"""A checkpoint is complete or invisible; the newest complete ones are kept."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_support import FakeEngine, names, save, state

from yarn_train.checkpoint import layout, safetensors_file
from yarn_train.checkpoint.complete import COMPLETE, complete_checkpoints, problems_of
from yarn_train.checkpoint.host_copy import HostCopy
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.checkpoint.state import TrainState
from yarn_train.errors import CheckpointError


def test_what_was_saved_is_loaded(checkpoints):
    checkpoints.save(FakeEngine(7.5), state(3))
    engine = FakeEngine(0.0)
    assert checkpoints.load(engine, checkpoints.newest()) == state(3)
    assert torch.equal(engine.weight, torch.full((4,), 7.5))
    assert engine.count == 7


def test_a_save_is_planned_anew_only_when_what_is_held_changes(checkpoints, monkeypatch):
    planned = []
    shares = layout.shares
    monkeypatch.setattr("yarn_train.checkpoint.manager.shares", lambda held: planned.append(1) or shares(held))
    for step in (1, 2):
        save(checkpoints, step, float(step))
    assert len(planned) == 1
    engine = FakeEngine(0.0)
    checkpoints.load(engine, checkpoints.newest())
    assert (engine.weight[0], engine.count) == (2.0, 2)
    checkpoints.save(FakeEngine(3.0, more=torch.ones(3)), state(3))
    engine = FakeEngine(0.0, more=torch.zeros(3))
    checkpoints.load(engine, checkpoints.newest())
    assert (len(planned), engine.count, engine.more["more"].tolist()) == (2, 3, [1.0, 1.0, 1.0])


def test_the_host_copy_is_kept_in_buffers_of_one_size(monkeypatch):
    monkeypatch.setattr("yarn_train.checkpoint.host_copy.BUFFER", 64)
    copy = HostCopy(torch.device("cpu"))
    tensors = [torch.arange(21.0), torch.arange(5, dtype=torch.uint8)]
    expected = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    parts = copy.take(tensors)
    assert [len(part) for part in parts] == [64, 25]
    assert b"".join(parts) == expected
    kept = [buffer.data_ptr() for buffer in copy._buffers]
    assert b"".join(copy.take(tensors[:1])) == expected[:84]
    assert [buffer.data_ptr() for buffer in copy._buffers] == kept
    assert b"".join(copy.take([torch.arange(40.0)])) == torch.arange(40.0).numpy().tobytes()
    assert [buffer.numel() for buffer in copy._buffers] == [64, 64, 32]


def test_what_is_saved_is_what_was_there_when_the_save_began(checkpoints, monkeypatch):
    engine, begin = FakeEngine(1.0), threading.Event()
    run = CheckpointManager._run
    monkeypatch.setattr(CheckpointManager, "_run", lambda self, save: (begin.wait(20), run(self, save)))
    checkpoints.save(engine, state(1))
    engine.weight.fill_(2.0)  # in the background nothing was written yet
    begin.set()
    checkpoints.load(engine, checkpoints.newest())
    assert engine.weight[0] == 1.0


def test_random_states_are_restored(checkpoints):
    def draw() -> list[float]:
        return [*torch.rand(3).tolist(), *np.random.randn(3), *(random.gauss(0, 1) for _ in range(3))]

    for seed in (0, 1):  # after an odd number of normal draws both libraries hold one back
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        draw()
        save(checkpoints, 1 + seed)
        expected = draw()
        torch.manual_seed(9)
        np.random.seed(9)
        random.seed(9)
        assert draw() != expected
        checkpoints.load(FakeEngine(0.0), checkpoints.newest())
        assert draw() == expected


def test_only_the_newest_are_kept(checkpoints):
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert names(checkpoints) == ["step_00000003", "step_00000004"]


def test_multiples_are_kept_for_good(make):
    checkpoints = make(keep=1, keep_every=4)
    for step in range(2, 12, 2):
        save(checkpoints, step)
    assert names(checkpoints) == ["step_00000004", "step_00000008", "step_00000010"]


def test_what_a_smaller_keep_does_not_allow_goes_and_is_named(make, capsys):
    for step in range(2, 12, 2):
        save(make(keep=9), step)
    (make().folder / ".step_00000012.incomplete").mkdir()
    capsys.readouterr()
    make(keep=2, keep_every=4).remove_old()
    left = ["step_00000004", "step_00000008", "step_00000010"]
    assert names(make()) == left
    expected = "checkpoint.keep=2: older checkpoints were removed: step_00000002, step_00000006"
    assert capsys.readouterr().out.splitlines() == [expected]
    make(keep=1, keep_every=4).remove_old()
    assert names(make()) == left
    assert capsys.readouterr().out == ""


def test_a_save_is_one_line_with_its_size_and_times(checkpoints, capsys):
    save(checkpoints, 40)
    size = sum(file.stat().st_size for file in checkpoints.newest().iterdir() if "safetensors" in file.name)
    expected = f"checkpoint step_00000040: {size / 1000:.1f} kB, written in 0."
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(expected)
    assert "s, training stood still for 0." in line


class Death(BaseException):
    """What a process meets that is killed: nothing is cleaned up."""


MOMENTS = ["rank_00000.safetensors", "rng_00000.safetensors", "index.json", "state", ".COMPLETE", "rename", "marker"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("make", [False], indirect=True)
def test_a_death_at_any_moment_of_a_save_leaves_the_one_before(checkpoints, monkeypatch, moment):
    save(checkpoints, 1, 1.0)
    with monkeypatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(Death):
            checkpoints.save(FakeEngine(2.0), state(2))
    assert [p.name for p in complete_checkpoints(checkpoints.folder)] == ["step_00000001"]
    newest = "step_00000002" if moment == "marker" else "step_00000001"  # all was there but the last rename
    assert checkpoints.newest().name == newest
    save(checkpoints, 2, 2.0)
    engine = FakeEngine(0.0)
    assert checkpoints.load(engine, checkpoints.newest()).step == 2
    assert engine.weight[0] == 2.0
    assert names(checkpoints) == ["step_00000001", "step_00000002"]


def kill_at(patch: pytest.MonkeyPatch, moment: str) -> None:
    """The first half of a file is written, or a rename is not made; then it is over."""
    write, rename, save = safetensors_file.write, Path.rename, TrainState.save

    def dying_write(path, parts):
        if path.name == moment:
            path.write_bytes(b"".join(parts)[:-7])
            raise Death
        return write(path, parts)

    def dying_rename(self, target):
        if self.name == {"rename": ".step_00000002.incomplete", "marker": ".COMPLETE"}.get(moment):
            raise Death
        return rename(self, target)

    def dying_save(self, folder):
        save(self, folder)
        raise Death

    patch.setattr(safetensors_file, "write", dying_write)
    patch.setattr(Path, "rename", dying_rename)
    if moment == "state":
        patch.setattr(TrainState, "save", dying_save)


@pytest.mark.parametrize("make", [False], indirect=True)
def test_a_death_while_an_old_one_is_removed_leaves_nothing_behind(checkpoints, monkeypatch):
    for step in (1, 2):
        save(checkpoints, step)

    def die(path):
        next(path.iterdir()).unlink()
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr("yarn_train.checkpoint.saving.shutil.rmtree", die)
        with pytest.raises(Death):
            save(checkpoints, 3)
    assert [p.name for p in complete_checkpoints(checkpoints.folder)] == ["step_00000002", "step_00000003"]
    assert all(not problems_of(path) for path in complete_checkpoints(checkpoints.folder))
    save(checkpoints, 4)
    assert names(checkpoints) == ["step_00000003", "step_00000004"]


def test_a_stage_whose_markers_were_all_lost_does_not_start_anew(checkpoints):
    for step in (1, 2):
        save(checkpoints, step)
    for folder in checkpoints.folder.iterdir():
        (folder / COMPLETE).unlink()
    with pytest.raises(CheckpointError, match=r"(?s)step_00000002: COMPLETE is missing.*step_00000001: COMPLETE"):
        checkpoints.newest()
    assert names(checkpoints) == ["step_00000001", "step_00000002"]


def test_what_a_save_left_in_its_last_instant_is_finished_if_it_is_intact(checkpoints, capsys):
    save(checkpoints, 1, 1.0)
    save(checkpoints, 2, 2.0)
    folder = checkpoints.folder / "step_00000002"
    (folder / COMPLETE).rename(folder / ".COMPLETE")
    assert checkpoints.newest() == folder
    assert "step_00000002: its save died right before its end; it is intact and used" in capsys.readouterr().out
    assert problems_of(folder) == []
    (folder / COMPLETE).rename(folder / ".COMPLETE")
    (folder / "index.json").unlink()
    assert checkpoints.newest().name == "step_00000001"
    assert "step_00000002 has no COMPLETE: its save did not end; it is not used" in capsys.readouterr().out
    save(checkpoints, 3)
    assert names(checkpoints) == ["step_00000001", "step_00000003"]


def test_no_folder_no_checkpoint(tmp_path):
    assert complete_checkpoints(tmp_path / "absent") == []


def test_garbage_is_no_checkpoint(checkpoints):
    (checkpoints.folder / "step_00000001").write_text("a file")
    (checkpoints.folder / "step_2").mkdir()
    (checkpoints.folder / "step_00000003" / COMPLETE).mkdir(parents=True)
    assert complete_checkpoints(checkpoints.folder) == []
    assert checkpoints.newest() is None


def test_a_checkpoint_of_other_tensors_is_refused_and_nothing_is_loaded(checkpoints):
    checkpoints.save(FakeEngine(1.0, a=torch.ones(3), b=torch.ones(2, 3), c=torch.ones(1)), state(1))
    engine = FakeEngine(5.0, a=torch.zeros(3, dtype=torch.bfloat16), b=torch.zeros(3, 2), d=torch.zeros(1))
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(engine, checkpoints.newest())
    message = str(error.value)
    assert "1 tensor not in it: weights.d" in message
    assert "1 tensor only in it: weights.c" in message
    assert "weights.a (F32 [3]; here BF16 [3]), weights.b (F32 [2, 3]; here F32 [3, 2])" in message
    assert engine.weight[0] == 5.0
    assert not engine.more["a"].any()
