"""A run folder is written by one run at a time, and nothing else is taken for one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT, child_env

from yarn_train.errors import CheckpointError, ConfigError, StorageError
from yarn_train.train import run_lock

Train = Callable[..., Path]
HOLDER = """
import sys, time
from pathlib import Path
from yarn_train.train import run_lock
with run_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder ``run``; it ends when its stdin does."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(words, cwd=ROOT, env=child_env(), stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_process_is_refused_and_told_who_has_the_folder(
    holder: subprocess.Popen[str],
    train: Train,
    tiny_args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.5)
    with pytest.raises(CheckpointError, match=rf"process {holder.pid} on .* works in it.*choose another run\.name"):
        train(tmp_path / "run", *tiny_args)
    assert capsys.readouterr().err.count(f"waiting for process {holder.pid}") == 1
    assert list(everything(tmp_path / "run")) == [run_lock.LOCK]


def test_the_lock_is_gone_with_its_process_however_it_ends(
    holder: subprocess.Popen[str], train: Train, tiny_args: list[str], tmp_path: Path
):
    holder.kill()  # as SIGKILL; nobody waits for it before the next start
    train(tmp_path / "run", *tiny_args, "train.stop_after=1")
    said = json.loads((tmp_path / "run" / run_lock.LOCK).read_text())
    assert said["pid"] != holder.pid


def test_whoever_waits_gets_the_folder_from_one_that_leaves_nothing(holder: subprocess.Popen[str], tmp_path: Path):
    assert holder.stdin is not None
    holder.stdin.close()  # it removes its lock file: the one that the waiting process may have open is not the one
    with run_lock.held(tmp_path / "run"):
        assert (tmp_path / "run" / run_lock.LOCK).exists()
    assert not (tmp_path / "run" / run_lock.LOCK).exists()


def test_other_ranks_share_the_folder_of_rank_0(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    with run_lock.held(tmp_path / "run"):
        pass


FOREIGN = {
    "a project": {"setup.py": "", "config.yaml": "name: mine\n"},
    "one file": {"notes.txt": ""},
    "somebody's config.yaml": {"config.yaml": "{run: 1}"},
    "YAML that is none": {"config.yaml": "a: [", "logs/x": ""},
    "somebody's run.json": {"run.json": "[]"},
    "a stage folder": {"config.yaml": "{run: {}, rope: {}, train: {}}", "metrics.jsonl": ""},
    "a file like a stage": {"01_s4": ""},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(
    train: Train, tiny_args: list[str], tmp_path: Path, files: dict[str, str]
):
    for name, text in files.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=r"not empty and not a run folder .* nothing was written"):
        train(tmp_path / "run", *tiny_args)
    assert everything(tmp_path) == before


def test_a_file_as_run_folder_is_refused(train: Train, tiny_args: list[str], tmp_path: Path):
    (tmp_path / "run").touch()
    with pytest.raises(CheckpointError, match="this is a file"):
        train(tmp_path / "run", *tiny_args)


def test_a_folder_that_cannot_be_made_is_a_storage_error(train: Train, tiny_args: list[str], tmp_path: Path):
    with pytest.raises(StorageError, match="give it room and permission"):
        train(Path("/proc/run"), *tiny_args)


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_text("")], ids=["deleted", "emptied"])
def test_a_run_whose_record_a_power_cut_took_goes_on(
    train: Train, tiny_args: list[str], tmp_path: Path, damage: Callable[[Path], object]
):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=2")
    damage(run / "run.json")
    (run / ".config.yaml.incomplete").touch()
    train(run, *tiny_args, "train.stop_after=4")
    assert len((run / "01_s4/metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((run / "run.json").read_text())["exit_reason"] == "stopped by train.stop_after"


def test_a_start_that_failed_leaves_nothing(train: Train, tiny_args: list[str], tmp_path: Path):
    (tmp_path / "run").mkdir()  # Hydra does
    with pytest.raises(ConfigError, match=r"model\.path"):
        train(tmp_path / "run", *tiny_args, "model.path=no/such/model/here")
    assert everything(tmp_path / "run") == {}
