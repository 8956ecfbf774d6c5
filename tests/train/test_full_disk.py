"""A full or read-only disk: the run stops with one message, keeps its last good checkpoint, and goes on later."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import course, same_weights

from yarn_train.checkpoint.manager import complete_checkpoints, problems_of
from yarn_train.errors import ConfigError, StorageError

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder):
        yield folder


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Leave so many bytes free."""
    filler = folder / "filler"
    status = os.statvfs(folder)
    with filler.open("ab") as file:
        file.write(b"\0" * max(0, status.f_bavail * status.f_frsize - leave))
    return filler


@pytest.fixture
def whole(train, tiny_args, tmp_path_factory) -> Path:
    """The same run on a disk with room, once for all tests."""
    if not done:
        done.append(train(tmp_path_factory.mktemp("whole") / "run", *args(tiny_args)))
    return done[0]


done: list[Path] = []


def args(tiny_args: list[str]) -> list[str]:
    return [*tiny_args, "model.dtype=float32", "plan.check=off"]


def refused(train: Callable[..., Path], run: Path, *overrides: str) -> str:
    """How the run stops; it must leave what is complete as it is."""
    with pytest.raises(StorageError) as stopped:
        train(run, *overrides)
    for checkpoint in complete_checkpoints(run / "01_s4/checkpoints"):
        assert problems_of(checkpoint) == []
    assert not (run / "01_s4/model").exists()
    assert stopped.value.exit_code == 5
    return str(stopped.value)


def ends_like(whole: Path, run: Path) -> None:
    assert course(run / "01_s4") == course(whole / "01_s4")
    assert same_weights(run / "01_s4/model", whole / "01_s4/model")
    assert json.loads((run / "run.json").read_text())["exit_reason"] == "complete"


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, then: Callable[[], object]) -> None:
    """Call `then` right before a step is taken."""
    from yarn_train.train import loop

    real = loop.train_step

    def step(trainer, data):
        if trainer.state.step == number - 1:
            trainer.checkpoints.finish()  # nothing else writes meanwhile
            then()
        return real(trainer, data)

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_no_space_in_the_middle_of_a_save(train, tiny_args, whole, small, monkeypatch, asynchronous):
    run = small / "run"
    words = [*args(tiny_args), f"checkpoint.async_save={asynchronous}"]
    at_step(monkeypatch, 5, lambda: fill(small, 100_000))  # the save of step 6 takes more, those of rows do not
    said = refused(train, run, *words)
    assert "No space left on device" in said
    assert "step_00000006 was not saved" in said
    assert [path.name for path in complete_checkpoints(run / "01_s4/checkpoints")] == ["step_00000002", "step_00000004"]
    monkeypatch.undo()
    (small / "filler").unlink()
    ends_like(whole, train(run, *words))


def test_a_smaller_keep_makes_room_on_a_full_disk(train, tiny_args, whole, small, capsys):
    run = small / "run"
    words = [*args(tiny_args), "plan.check=refuse"]
    train(run, *words, "train.stop_after=6")
    checkpoints = run / "01_s4/checkpoints"
    size = sum(file.stat().st_size for file in (checkpoints / "step_00000006").iterdir())
    fill(small, size // 2)
    with pytest.raises(ConfigError, match=r"still to be written and .*checkpoint\.keep=1"):
        train(run, *words)
    assert len(complete_checkpoints(checkpoints)) == 3
    capsys.readouterr()
    ends_like(whole, train(run, *words, "checkpoint.keep=1"))
    told = "checkpoint.keep=1: older checkpoints were removed: step_00000002, step_00000004"
    assert told in capsys.readouterr().out
    assert [path.name for path in complete_checkpoints(checkpoints)] == ["step_00000008"]


def test_no_space_for_the_metrics(train, tiny_args, whole, small, monkeypatch):
    run = small / "run"
    file = run / "01_s4/metrics.jsonl"

    def full() -> None:
        with file.open("a") as rows:  # a begun page of memory has room without any being free
            rows.write("\n" * (-file.stat().st_size % 4096))
        fill(small, 0)

    at_step(monkeypatch, 5, full)
    said = refused(train, run, *args(tiny_args))
    assert "metrics.jsonl: No space left on device" in said
    assert "Complete checkpoints are intact" in said
    monkeypatch.undo()
    (small / "filler").unlink()
    ends_like(whole, train(run, *args(tiny_args)))


def test_no_space_for_the_model_at_the_end(train, tiny_args, whole, small, monkeypatch):
    from yarn_train.checkpoint import hf_export

    run, write = small / "run", hf_export.write_model

    def full(*given, **named):
        fill(small, 20_000)
        write(*given, **named)

    monkeypatch.setattr(hf_export, "write_model", full)
    said = refused(train, run, *args(tiny_args))
    assert re.search(
        r"01_s4/\.model\.incomplete\S*: No space left on device \(it needs 0\.\d MB, 0\.\d MB free there\)", said
    ), said
    assert not (run / "01_s4/.model.incomplete").exists()
    monkeypatch.undo()
    (small / "filler").unlink()
    ends_like(whole, train(run, *args(tiny_args)))


def test_a_disk_that_becomes_read_only(train, tiny_args, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(run, *args(tiny_args), "train.stop_after=2")
    checkpoints = run / "01_s4/checkpoints"
    with mounted(checkpoints):  # between two saves nothing is open in there, which would keep it writable
        at_step(monkeypatch, 5, lambda: remount(checkpoints, "ro"))
        said = refused(train, run, *args(tiny_args))
        assert "step_00000006 was not saved" in said
        assert "Read-only file system" in said
        assert json.loads((run / "run.json").read_text())["exit_reason"].startswith("failed: checkpoint step_00000006")
        monkeypatch.undo()
        with pytest.raises(StorageError, match=r"Read-only file system \(.* belongs to "):  # before weights load
            train(run, *args(tiny_args))
        remount(checkpoints, "rw")
        ends_like(whole, train(run, *args(tiny_args)))


def test_run_json_that_cannot_be_written_does_not_hide_why_the_run_ended(
    train, tiny_args, tmp_path, monkeypatch, capsys
):
    from yarn_train.train import loop, run_folder

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def odd(*_: object) -> None:
        monkeypatch.setattr(run_folder, "end_record", no_space)
        raise ZeroDivisionError("the cause")

    monkeypatch.setattr(loop, "train_step", odd)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", *args(tiny_args))
    assert "it would say: failed: ZeroDivisionError: the cause" in capsys.readouterr().out
