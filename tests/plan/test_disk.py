"""The room that a run needs, counted before it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from yarn_train import config as schema
from yarn_train.checkpoint.saving import Kept, as_text
from yarn_train.errors import ConfigError, StorageError
from yarn_train.plan import disk
from yarn_train.plan.disk import Stored, at_most, check_disk
from yarn_train.plan.machines import GIB
from yarn_train.stages import Stage

BASE = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=320, head_dim=8
)


def stage(folder: Path, name: str = "01_s4", **sections: Any) -> Stage:
    plain: dict[str, Any] = {"rope": {"factor": 4.0}, "schedule": {"warmup_steps": 0}, **sections}
    return Stage(name.partition("_")[2], folder / name, schema.build(plain))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.none() | st.integers(1, 15))
def test_as_many_checkpoints_are_counted_as_a_run_keeps_and_has_beside_them(steps, every, keep, keep_every):
    options = {"every": every, "keep": keep, "keep_every": keep_every}
    cfg = schema.build({"train": {"steps": steps}, "checkpoint": options, "schedule": {"warmup_steps": 0}})
    stored = Stored.of("s", cfg, 1.0, 0.0)
    there: list[Path] = []
    most = 0
    for step in range(1, steps + 1):
        if step % every == 0 or step == steps:
            there.append(Path(f"step_{step:08d}"))
            most = max(most, len(there))
            there = [path for path in there if path not in Kept(keep, keep_every).beyond(there)]
    assert (stored.kept, stored.kept + stored.beside) == (len(there), most)


def test_stages_come_one_after_the_other():
    one, two = Stored("a", 10.0, 4.0, 2, 1), Stored("b", 10.0, 4.0, 2, 1)
    assert at_most([one]) == (24.0, 30.0)
    assert at_most([one, two]) == (48.0, 54.0)
    assert at_most([Stored("a", 1.0, 40.0, 2, 1)]) == (42.0, 42.0)
    assert at_most([]) == (0.0, 0.0)


@pytest.fixture
def free(monkeypatch) -> Callable[[float], None]:
    def have(amount: float) -> None:
        usage = SimpleNamespace(total=0, used=0, free=amount)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)

    return have


def needed(stages: list[Stage], folder: Path) -> float:
    return disk.run_room([s for s in stages if not s.finished], BASE, folder).needed


def test_a_run_that_does_not_fit_is_refused_with_all_numbers_and_what_to_change(tmp_path, free):
    run = tmp_path / "not yet" / "run"
    stages = [stage(run, data={"source": "stdlib"}), stage(run, "02_s8", data={"source": "stdlib"})]
    need = needed(stages, run)
    free(need)
    assert check_disk(stages, BASE, run).startswith(f"disk: at most {as_text(need)} more of {as_text(need)} free at ")
    assert as_text(need).endswith(" MB")  # small ones are no zeros
    free(need - 1)
    with pytest.raises(ConfigError) as refused:
        check_disk(stages, BASE, run)
    said = str(refused.value)
    for part in ("s4: 2 checkpoints and 1 being written of", "s8: 2", f"free at {tmp_path}", "checkpoint.keep=1"):
        assert part in said
    assert "plan.check=warn" in said
    assert not run.parent.exists()
    warn = [stage(run, plan={"check": "warn"})]
    free(0)
    assert check_disk(warn, BASE, run).startswith("WARNING: disk: ")
    assert "not checked" in check_disk([stage(run, plan={"check": "off"})], BASE, run)


def test_the_need_is_that_of_the_arithmetic(tmp_path):
    run = tmp_path / "run"
    parameters = disk.Sizes.of(BASE).parameters
    few = {"checkpoint": {"every": 10, "keep": 2, "keep_every": 20, "export_dtype": "bfloat16"}, "train": {"steps": 60}}
    # 50 and 60 are the newest, 20 and 40 stay for good; while 50 is written, 30 is there and 60 is not
    assert needed([stage(run, **few)], run) == parameters * (12 * 4 + 2)
    assert needed([stage(run, **few, optim={"state": "bfloat16"})], run) == parameters * (6 * 4 + 2)


def put(folder: Path, name: str, size: int) -> None:
    """A complete checkpoint of so many bytes, or what is left of one."""
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "rank_00000.safetensors").write_bytes(b"0" * size)
    (path / "COMPLETE").touch()


def test_what_an_interrupted_run_has_left_is_not_needed_again(tmp_path):
    run = tmp_path / "run"
    few = {"checkpoint": {"every": 10, "keep": 2}, "train": {"steps": 60}}
    [one] = stages = [stage(run, **few)]
    checkpoint, model = checkpoint_of(one), disk.export_bytes(one.cfg, disk.Sizes.of(BASE))
    assert needed(stages, run) == 3 * checkpoint
    put(one.folder, "step_00000050", 1000)
    put(one.folder, "step_00000040.corrupt", 500)  # is kept as evidence
    assert needed(stages, run) == checkpoint + model  # 60, beside 50
    put(one.folder, "step_00000040", 2000)
    assert needed(stages, run) == checkpoint + model - 2000  # which is gone when the model is written
    put(one.folder, ".step_00000060.incomplete", 700)  # goes before anything is written
    assert needed(stages, run) == checkpoint + model - 2700
    put(one.folder, "step_00000030", 3000)  # a smaller keep than before: it goes once 50 is loaded
    assert needed(stages, run) == checkpoint + model - 5700
    put(one.folder, "step_00000060", 1000)
    assert needed(stages, run) == model - 5700


def checkpoint_of(one: Stage) -> float:
    return disk.checkpoint_bytes(one.cfg, disk.Sizes.of(BASE))


@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 5),
    st.none() | st.integers(1, 15),
    st.sets(st.integers(1, 40)),
)
def test_the_need_follows_from_what_saves_and_removals_do(steps, every, keep, keep_every, before):
    options = {"every": every, "keep": keep, "keep_every": keep_every}
    cfg = schema.build({"train": {"steps": steps}, "checkpoint": options, "schedule": {"warmup_steps": 0}})
    rule = Kept(keep, keep_every)
    there = {step: 100.0 + step for step in before if step <= steps}
    paths = {Path(f"step_{step:08d}"): size for step, size in there.items()}
    used = sum(paths.values())
    most = 0.0

    def remove() -> None:
        for path in rule.beyond(sorted(paths)):
            del paths[path]

    remove()
    for step in range(max(there, default=0) + 1, steps + 1):
        if step % every == 0 or step == steps:
            paths[Path(f"step_{step:08d}")] = 7.0
            most = max(most, sum(paths.values()) - used)
            remove()
    most = max(most, sum(paths.values()) + 3.0 - used)
    assert max(0.0, *accumulate(disk.changes(there, cfg, 7.0, 3.0))) == most


def test_the_first_save_of_a_resumed_run_needs_room_for_one_more(tmp_path, free):
    run = tmp_path / "run"
    [one] = stages = [stage(run, checkpoint={"every": 50, "keep": 2}, train={"steps": 100})]
    for step in (10, 20):  # saved when it was preempted: as many as it will ever have at once
        put(one.folder, f"step_{step:08d}", int(checkpoint_of(one)))
    free(checkpoint_of(one) - 1)
    with pytest.raises(ConfigError, match="are there"):
        check_disk(stages, BASE, run)


def test_data_that_is_not_prepared_needs_room_too_where_it_is_prepared(tmp_path, free, monkeypatch):
    books = tmp_path / "books"
    books.mkdir()
    (books / "a.jsonl").write_text('{"text": "a"}\n' * 1000)
    data = {"source": "text", "path": str(books), "cache": str(tmp_path / "cache")}
    stages = [stage(tmp_path / "run", data=data), stage(tmp_path / "run", "02_s8", data=data)]
    (room,) = disk.data_rooms(stages)  # the same data for both
    assert room.needed == 2 * (books / "a.jsonl").stat().st_size
    need = needed(stages, tmp_path / "run")
    free(need + room.needed)
    check_disk(stages, BASE, tmp_path / "run")
    free(need + room.needed - 1)
    with pytest.raises(ConfigError, match=r"to prepare .*books"):
        check_disk(stages, BASE, tmp_path / "run")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/manifest.json").write_text("{}")
    assert list(disk.data_rooms(stages)) == []


def test_other_file_systems_are_held_apart(tmp_path, free):
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    books = tmp_path / "books.txt"
    books.write_text("word " * 1000)
    stages = [stage(tmp_path / "run", data={"source": "text", "path": str(books), "cache": "/dev/shm/yarn_train"})]
    need = needed(stages, tmp_path / "run")
    free(max(need, 2.0 * books.stat().st_size))
    assert "free at /dev/shm" in check_disk(stages, BASE, tmp_path / "run")


def test_every_file_system_that_is_too_small_is_named(tmp_path, monkeypatch):
    places = [tmp_path / "one", tmp_path / "two"]
    rooms = [disk.Room(place, 3e9, f"what {place.name} holds") for place in places]
    monkeypatch.setattr(disk, "run_room", lambda *_: rooms[0])
    monkeypatch.setattr(disk, "data_rooms", lambda _: rooms[1:])
    monkeypatch.setattr(disk, "existing", lambda path: SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=path)))
    monkeypatch.setattr(disk, "check_writable", lambda _: None)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=2e9))
    with pytest.raises(ConfigError) as refused:
        check_disk([stage(tmp_path)], BASE, tmp_path)
    first, second = refused.value.problems
    assert "3.0 GB still to be written and 2.0 GB free" in first
    assert ("what one holds" in first, "what two holds" in second) == (True, True)


def test_a_folder_that_cannot_be_written_is_told_with_its_owner(tmp_path, monkeypatch):
    def refused(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", refused)
    with pytest.raises(StorageError, match="Permission denied") as error:
        check_disk([stage(tmp_path / "run")], BASE, tmp_path / "run")
    assert f"{tmp_path} belongs to " in str(error.value)
    assert f"({os.geteuid()})" in str(error.value)
    monkeypatch.undo()
    assert shutil.disk_usage(tmp_path).free < 1e6 * GIB
    check_disk([stage(tmp_path / "run", plan={"check": "off"})], BASE, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
