"""Whatever happens to a file of a checkpoint is found before it is used, named, and the one before is used."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from checkpoint_support import FakeEngine, names, save

from yarn_train import export
from yarn_train.checkpoint import complete, safetensors_file
from yarn_train.checkpoint.complete import COMPLETE, Complete, dealt, file_problems, problems_of
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.checkpoint.safetensors_file import Sealed
from yarn_train.errors import CheckpointError, StorageError

FILES = ["rank_00000.safetensors", "rng_00000.safetensors", "index.json", "train_state.json", COMPLETE]


@pytest.fixture
def two(checkpoints: CheckpointManager, capsys: pytest.CaptureFixture[str]) -> CheckpointManager:
    """Checkpoints of steps 1 and 2, that hold these numbers."""
    save(checkpoints, 1, 1.0)
    save(checkpoints, 2, 2.0)
    capsys.readouterr()
    return checkpoints


def test_these_are_all_files(two):
    assert sorted(path.name for path in two.newest().iterdir()) == sorted(FILES)


@pytest.mark.parametrize("make", [True], indirect=True)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["truncated", "emptied", "longer", "deleted", "a folder"])
def test_a_file_of_another_size_is_found(two, capsys, file, how):
    path = two.folder / "step_00000002" / file
    whole = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "deleted":
        path.write_bytes({"truncated": whole[:-2], "emptied": b"", "longer": whole + b"0"}[how])
    expect_the_one_before(two, capsys.readouterr, file)


@pytest.mark.parametrize("make", [True], indirect=True)
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_found_wherever_it_is(two, file):
    path = two.folder / "step_00000002" / file
    whole = path.read_bytes()
    assert problems_of(path.parent) == []
    for at in range(0, len(whole) * 8, max(1, len(whole) * 8 // 700)):
        changed = bytearray(whole)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        (problem,) = problems_of(path.parent)
        assert file in problem, problem
    path.write_bytes(whole)
    assert problems_of(path.parent) == []


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_has_the_one_before_used(two, capsys, file):
    path = two.folder / "step_00000002" / file
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 4
    path.write_bytes(changed)
    expect_the_one_before(two, capsys.readouterr, file)


def expect_the_one_before(two, said, file):
    engine = FakeEngine(0.0)
    assert two.load(engine, two.newest()).step == 1
    assert engine.weight[0] == 1.0
    text = said().out
    assert file in text
    assert "step_00000002" in text
    assert "step_00000001 is used instead" in text
    assert f"kept as {two.folder / 'step_00000002.corrupt'}" in text
    assert names(two) == ["step_00000001", "step_00000002.corrupt"]
    save(two, 2, 3.0)
    two.load(engine, two.newest())
    assert engine.weight[0] == 3.0


def test_the_size_the_file_and_what_is_wrong_are_said(two, capsys):
    path = two.folder / "step_00000002/rank_00000.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    (two.folder / "step_00000002/index.json").unlink()
    assert two.newest().name == "step_00000001"
    (line,) = capsys.readouterr().out.splitlines()
    assert f"rank_00000.safetensors has {size - 3} bytes instead of {size}" in line
    assert "index.json is missing" in line


def test_what_is_left_of_several_is_kept(two):
    for _ in range(2):
        (two.folder / "step_00000002/index.json").unlink()
        assert two.newest().name == "step_00000001"
        save(two, 2)
    assert names(two) == ["step_00000001", "step_00000002", "step_00000002.corrupt", "step_00000002.corrupt.2"]


def test_where_none_is_intact_nothing_starts_anew_silently(two):
    for step in (1, 2):
        (two.folder / f"step_0000000{step}/index.json").unlink()
    with pytest.raises(CheckpointError) as error:
        two.newest()
    assert "step_00000002: index.json is missing" in str(error.value)
    assert "step_00000001: index.json is missing" in str(error.value)
    assert f"delete {two.folder} to start this stage anew" in str(error.value)
    assert names(two) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", ".hidden", "a\\b", COMPLETE, ""])
def test_only_plain_names_are_ever_opened(two, name):
    checkpoint = two.folder / "step_00000002"
    complete = Complete.load(checkpoint)
    sealed = next(iter(complete.files.values()))
    changed = Complete(2, 1, complete.saved, {**complete.files, name: sealed})
    (checkpoint / COMPLETE).write_text(changed.text())
    (problem,) = problems_of(checkpoint)
    assert problem == f"{COMPLETE} names {name!r}, which is no file of this folder"


@pytest.mark.parametrize("text", ["", "[]", "step_00000002\n", '{"files": []}', '{"files": {"a": 3}}', "\xff", "nan"])
def test_anything_may_stand_in_complete(two, text):
    (two.folder / "step_00000002" / COMPLETE).write_bytes(text.encode("latin-1"))
    (problem,) = problems_of(two.folder / "step_00000002")
    assert problem.startswith(f"{COMPLETE} is not what was written")
    assert two.newest().name == "step_00000001"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("make", [True], indirect=True)
def test_storage_that_cannot_be_read_says_nothing_about_a_checkpoint(two, monkeypatch, code):
    monkeypatch.setattr(complete, "AGAIN", 0.0)
    read, read_bytes, failures = safetensors_file.read_sealed, Path.read_bytes, [0]

    def flaky(read, path):
        if failures[0]:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(safetensors_file, "read_sealed", lambda path: flaky(read, path))
    monkeypatch.setattr(Path, "read_bytes", lambda path: flaky(read_bytes, path))
    failures[0] = 1  # of COMPLETE, and it goes away
    assert two.newest().name == "step_00000002"
    whole = Complete.load(two.folder / "step_00000002")
    monkeypatch.setattr(Complete, "load", lambda *_: whole)
    failures[0] = 1  # of the first tensor file
    assert two.newest().name == "step_00000002"
    failures[0] = 99
    with pytest.raises(StorageError) as error:
        two.newest()
    assert "rank 0 on " in str(error.value)
    assert f"could not read {two.folder / 'step_00000002'}/r" in str(error.value)
    assert f"{os.strerror(code)} (errno {code})" in str(error.value)
    assert "delete" not in str(error.value)
    assert names(two) == ["step_00000001", "step_00000002"]


def test_a_file_that_is_not_seen_yet_is_waited_for(tmp_path):
    sealed = safetensors_file.write(tmp_path / "late", [b"bytes"])
    (tmp_path / "late").rename(tmp_path / "aside")
    assert file_problems(tmp_path, [("late", sealed)], 0.2) == ["late is missing"]
    timer = threading.Timer(0.3, lambda: (tmp_path / "aside").rename(tmp_path / "late"))
    timer.start()
    assert file_problems(tmp_path, [("late", sealed)], 20.0) == []
    timer.join()


def test_files_are_dealt_by_bytes():
    files = {f"rng_{i}": Sealed(1, "") for i in range(6)} | {"large": Sealed(90, ""), "index.json": Sealed(50, "")}
    shares = dealt(files | {"middle": Sealed(40, "")}, 2)
    assert sorted(name for share in shares for name, _ in share) == sorted([*files, "middle"])
    assert [sum(sealed.bytes for _, sealed in share) for share in shares] == [93, 93]


@pytest.mark.parametrize("make", [True], indirect=True)
def test_what_a_newer_version_wrote_is_refused_and_left_alone(two):
    path = two.folder / "step_00000002" / COMPLETE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=4))
    assert two.newest() == path.parent  # what it says counts, not how that is laid out
    content = {**content, "format": 2, "parts": []}
    del content["files"], content["sha256"]
    path.write_text(json.dumps({**content, "sha256": complete._hashed(content)}))
    with pytest.raises(CheckpointError, match=r"written by a newer yarn-train \(format 2; this one reads 1\)"):
        two.newest()
    assert names(two) == ["step_00000001", "step_00000002"]


def test_complete_says_what_there_is(two):
    content = json.loads((two.newest() / COMPLETE).read_text())
    said = {key: content[key] for key in ("format", "step", "world_size")}
    assert said == {"format": 1, "step": 2, "world_size": 1}
    assert content["saved"].endswith("+00:00")
    sizes = {name: (two.newest() / name).stat().st_size for name in FILES if name != COMPLETE}
    assert {name: sealed["bytes"] for name, sealed in content["files"].items()} == sizes


def test_a_damaged_checkpoint_is_not_exported(train, tiny_args, tmp_path, capsys):
    stage = train(tmp_path / "run", *tiny_args, "train.steps=4", "train.stop_after=3") / "01_s4"
    newest = stage / "checkpoints/step_00000003"
    path = newest / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert export.main([str(newest), str(tmp_path / "refused")]) == 2
    assert "rank_00000.safetensors has" in capsys.readouterr().out
    assert export.main([str(stage), str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert f"{newest} is damaged and not used" in out
    assert "exported" in out
    assert "step_00000002 to" in out
    assert not (tmp_path / "refused").exists()
    (stage / "checkpoints/step_00000002/index.json").unlink()
    assert export.main([str(stage), str(tmp_path / "none")]) == 2
    assert "none of its 2 checkpoints is intact" in capsys.readouterr().err
