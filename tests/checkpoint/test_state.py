"""What a checkpoint says about its data, and which data may follow."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from yarn_train.checkpoint.state import TrainState, refuse_other_data
from yarn_train.data.stream import SourceState
from yarn_train.errors import CheckpointError

BOOKS = SourceState("books", "7/10", "b" * 64, segments=50, epoch=1, position=4, documents_sha256="e" * 64)
CODE = SourceState("code", "3/10", "c" * 64, segments=2000, epoch=0, position=99)
STATE = TrainState(step=3, tokens=30, samples=12, seed=5, world_size=2, data=(BOOKS, CODE))


def test_a_state_survives_its_file(tmp_path: Path) -> None:
    STATE.save(tmp_path)
    assert TrainState.load(tmp_path) == STATE
    stored = json.loads((tmp_path / "train_state.json").read_text())
    assert stored["data"][0] == dataclasses.asdict(BOOKS)


def test_the_same_data_may_follow_wherever_it_stands_and_whatever_it_is_called(tmp_path: Path) -> None:
    STATE.save(tmp_path)
    renamed = dataclasses.replace(BOOKS, name="pg19", epoch=0, position=0)
    refuse_other_data(tmp_path, (renamed, CODE))
    refuse_other_data(tmp_path, (BOOKS, dataclasses.replace(CODE, documents_sha256="f" * 64)))  # not known then


@pytest.mark.parametrize(
    "now",
    [
        (BOOKS,),
        (CODE, BOOKS),
        (BOOKS, CODE, CODE),
        (dataclasses.replace(BOOKS, content_sha256="d" * 64), CODE),
        (dataclasses.replace(BOOKS, documents_sha256="f" * 64), CODE),
        (dataclasses.replace(BOOKS, weight="3/10"), dataclasses.replace(CODE, weight="7/10")),
    ],
)
def test_other_data_is_refused_and_both_are_named(tmp_path: Path, now: tuple[SourceState, ...]) -> None:
    STATE.save(tmp_path)
    with pytest.raises(CheckpointError) as error:
        refuse_other_data(tmp_path, now)
    then = f"then: books (share 7/10, 50 segments, content {'b' * 12}, document starts {'e' * 12}) + code (share 3/10"
    assert then in str(error.value)
    assert re.search(rf"now:  {now[0].name} .*{now[0].content_sha256[:12]}", str(error.value))


def test_a_state_of_another_version_is_told(tmp_path: Path) -> None:
    STATE.save(tmp_path)
    stored = json.loads((tmp_path / "train_state.json").read_text())
    (tmp_path / "train_state.json").write_text(json.dumps({**stored, "moon": "full"}))
    with pytest.raises(CheckpointError, match=r"'moon'\): another version wrote it"):
        TrainState.load(tmp_path)


def test_a_state_older_than_its_data_field_follows_any_data(tmp_path: Path) -> None:
    (tmp_path / "train_state.json").write_text('{"step": 3, "tokens": 30, "samples": 12, "seed": 5, "world_size": 2}')
    assert TrainState.load(tmp_path) == dataclasses.replace(STATE, data=())
    refuse_other_data(tmp_path, (BOOKS,))
