"""A checkpoint is complete or invisible; the newest complete ones are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yarn_train.checkpoint import dcp, manager
from yarn_train.checkpoint.manager import COMPLETE, CheckpointManager, complete_checkpoints
from yarn_train.checkpoint.state import TrainState
from yarn_train.dist import runtime as dist_runtime


class FakeEngine:
    """An engine of one tensor."""

    def __init__(self, value: float):
        self.weight = torch.full((4,), value)

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]


def state(step: int) -> TrainState:
    return TrainState(step=step, tokens=step * 10, samples=step * 2, seed=0, world_size=1)


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "checkpoints", keep=2, runtime=dist_runtime.start())


def test_what_was_saved_is_loaded(checkpoints):
    checkpoints.save(FakeEngine(1.5), state(3))
    engine = FakeEngine(0.0)
    assert checkpoints.load(engine, checkpoints.newest()) == state(3)
    assert torch.equal(engine.weight, torch.full((4,), 1.5))


def test_random_state_is_restored(checkpoints):
    torch.manual_seed(5)
    checkpoints.save(FakeEngine(0.0), state(1))
    expected = torch.rand(3)
    torch.manual_seed(6)
    checkpoints.load(FakeEngine(0.0), checkpoints.newest())
    assert torch.equal(torch.rand(3), expected)


def test_only_the_newest_are_kept(checkpoints):
    for step in (1, 2, 3, 4):
        checkpoints.save(FakeEngine(0.0), state(step))
    assert [p.name for p in complete_checkpoints(checkpoints.folder)] == ["step_00000003", "step_00000004"]
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step_00000003", "step_00000004"]


@pytest.mark.parametrize("moment", ["tensors", "state", "rename", "marker"])
def test_a_death_at_any_moment_of_a_save_leaves_the_one_before(checkpoints, monkeypatch, moment):
    checkpoints.save(FakeEngine(1.0), state(1))

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    target = {
        "tensors": (dcp, "save"),
        "state": (TrainState, "save"),
        "rename": (Path, "rename"),
        "marker": (Path, "write_text"),
    }[moment]
    with monkeypatch.context() as patch:
        if moment in ("rename", "marker"):  # others use these methods too: die only at ours
            original = getattr(*target)
            last = {"rename": ".step_00000002.incomplete", "marker": COMPLETE}[moment]
            patch.setattr(*target, lambda self, *a, **k: die() if self.name == last else original(self, *a, **k))
        else:
            patch.setattr(*target, die)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(FakeEngine(2.0), state(2))
    assert [p.name for p in complete_checkpoints(checkpoints.folder)] == ["step_00000001"]
    checkpoints.save(FakeEngine(2.0), state(2))
    engine = FakeEngine(0.0)
    assert checkpoints.load(engine, checkpoints.newest()).step == 2
    assert engine.weight[0] == 2.0
    assert not list(checkpoints.folder.glob(".step_*"))


def test_a_folder_without_its_marker_is_no_checkpoint(checkpoints):
    checkpoints.save(FakeEngine(1.0), state(1))
    (checkpoints.folder / "step_00000001" / COMPLETE).unlink()
    assert checkpoints.newest() is None


def test_no_folder_no_checkpoint(tmp_path):
    assert manager.complete_checkpoints(tmp_path / "absent") == []
