"""Storage that cannot be written: one message on every rank, the last good checkpoint intact, the next save works."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_support import FakeEngine, failing, names, save, state

from yarn_train.checkpoint.complete import complete_checkpoints, problems_of
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.config import CheckpointConfig
from yarn_train.dist import runtime as dist_runtime
from yarn_train.errors import StorageError

FILES = ["rank_00000.safetensors", "rng_00000.safetensors", "index.json", "train_state.json", ".COMPLETE"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_cannot_be_written_leaves_the_last_good_one(checkpoints, monkeypatch, file, code):
    save(checkpoints, 1, 1.0)
    with monkeypatch.context() as patch:
        failing(patch, file, code)
        with pytest.raises(StorageError) as error:
            save(checkpoints, 2, 2.0)
    message = str(error.value)
    assert "checkpoint step_00000002 was not saved: rank 0 on " in message
    assert os.strerror(code) in message
    assert str(checkpoints.folder / ".step_00000002.incomplete" / file) in message
    assert "; free there: " in message
    assert f"newest good checkpoint is {checkpoints.folder / 'step_00000001'}. Free space or mend" in message
    assert names(checkpoints) == ["step_00000001"]
    assert not checkpoints.failed
    save(checkpoints, 2, 2.0)
    engine = FakeEngine(0.0)
    checkpoints.load(engine, checkpoints.newest())
    assert engine.weight[0] == 2.0


@pytest.mark.parametrize("call", ["mkdir", "rename", "fsync"])
def test_folders_that_cannot_be_changed(checkpoints, monkeypatch, call):
    save(checkpoints, 1)

    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    with monkeypatch.context() as patch:
        patch.setattr(*{"mkdir": (os, "mkdir"), "rename": (os, "rename"), "fsync": (os, "fsync")}[call], fail)
        with pytest.raises(StorageError, match="Read-only file system"):
            save(checkpoints, 2)
    assert complete_checkpoints(checkpoints.folder) == [checkpoints.folder / "step_00000001"]
    save(checkpoints, 2)
    assert names(checkpoints) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("make", [True], indirect=True)
def test_a_failure_in_the_background_is_known_and_raised_once(checkpoints, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, "index.json", errno.ENOSPC)
        checkpoints.save(FakeEngine(1.0), state(1))
        checkpoints._thread.join()
        assert checkpoints.failed
        with pytest.raises(StorageError, match="No checkpoint was complete before"):
            checkpoints.save(FakeEngine(1.0), state(2))  # says so instead of beginning another
    assert not checkpoints.failed
    assert names(checkpoints) == []
    checkpoints.finish()


def test_old_ones_that_cannot_be_removed_do_not_spoil_the_new_one(checkpoints, monkeypatch, capsys):
    save(checkpoints, 1)
    save(checkpoints, 2)

    def fail(path, **_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("yarn_train.checkpoint.saving.shutil.rmtree", fail)
        save(checkpoints, 3)
    assert "old checkpoints could not be removed: " in capsys.readouterr().out
    assert checkpoints.newest().name == "step_00000003"
    save(checkpoints, 4)
    assert names(checkpoints) == ["step_00000003", "step_00000004"]


def test_a_folder_that_cannot_be_made_is_found_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be written: Not a directory"):
        CheckpointManager(tmp_path / "file/checkpoints", CheckpointConfig(), dist_runtime.start())
    (tmp_path / "checkpoints").touch()
    with pytest.raises(StorageError, match=r"checkpoints cannot be written: File exists"):
        CheckpointManager(tmp_path / "checkpoints", CheckpointConfig(), dist_runtime.start())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB, 4 of them taken by the file `room`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "small", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs leave to mount a file system")
    (folder / "room").write_bytes(b"0" * 4_000_000)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full(small_disk, make):
    """It holds two checkpoints of 6 MB, and the third only without the file."""
    checkpoints = make()
    engine = FakeEngine(1.0, large=torch.ones(1_500_000))
    checkpoints.folder = small_disk / "checkpoints"
    for step in (1, 2):
        save_all(checkpoints, engine, step)
    with pytest.raises(StorageError) as error:
        save_all(checkpoints, engine, 3)
    assert "No space left on device" in str(error.value)
    assert "its part of the checkpoint: 6.0 MB; free there: " in str(error.value)
    for path in complete_checkpoints(checkpoints.folder):
        assert problems_of(path) == []
    assert names(checkpoints) == ["step_00000001", "step_00000002"]
    (checkpoints.folder.parent / "room").unlink()
    save_all(checkpoints, engine, 3)
    assert checkpoints.newest().name == "step_00000003"


def save_all(checkpoints, engine, step):
    checkpoints.save(engine, state(step))
    checkpoints.finish()
