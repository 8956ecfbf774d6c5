"""A run reads the commit of a hub data set that it began with, however the hub moves on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tables_support import Hub, write

from yarn_train.config import Config, DataConfig
from yarn_train.data import hub
from yarn_train.stages import Stage
from yarn_train.train.pinning import pin, pin_data

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub whose newest commit is NEW."""
    hub.find.cache_clear()
    folders = {commit: tmp_path / "hub" / commit for commit in (OLD, NEW)}
    for commit, folder in folders.items():
        write(folder / "train.jsonl", [f"text of {commit[0]}"])
    return Hub(monkeypatch, folders)


def stage(folder: Path, **data: Any) -> Stage:
    return Stage("s4", folder, Config(data=DataConfig(**data)))


BOOKS: dict[str, Any] = {"source": "text", "path": "owner/books"}


def test_the_first_start_takes_the_newest_and_later_ones_the_same(moving: Hub, tmp_path: Path):
    first = pin_data(stage(tmp_path / "run", **BOOKS))
    assert first.cfg.data.revision == NEW
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {**BOOKS, "revision": OLD}}))
    moving.asked.clear()
    assert pin_data(stage(tmp_path / "run", **BOOKS)).cfg.data.revision == OLD
    assert moving.asked == []
    typed = pin_data(stage(tmp_path / "run", **BOOKS, revision=NEW))
    assert typed.cfg.data.revision == NEW  # and the check of the configuration refuses it
    other = pin_data(stage(tmp_path / "run", **{**BOOKS, "path": "owner/other"}))
    assert other.cfg.data.revision == NEW


def test_parts_of_a_mixture_are_pinned_one_by_one(moving: Hub, tmp_path: Path):
    mixture = {"books": {**BOOKS, "weight": 1}, "code": {"source": "stdlib", "weight": 2}}
    data = DataConfig(source="mixture", mixture=mixture)
    assert pin(data, {}).mixture == {**mixture, "books": {**BOOKS, "weight": 1, "revision": NEW}}
    assert data.mixture == mixture
    before = {"mixture": {"books": {**BOOKS, "revision": OLD}}}
    assert pin(data, before).mixture["books"]["revision"] == OLD


def test_what_is_not_of_the_hub_stays_as_it_is(moving: Hub, tmp_path: Path):
    (tmp_path / "books").mkdir()
    for data in ({"source": "stdlib"}, {"source": "text", "path": str(tmp_path / "books")}):
        assert pin_data(stage(tmp_path / "run", **data)).cfg.data == DataConfig(**data)
    named = stage(tmp_path / "run", **BOOKS, cache="somewhere")
    assert pin_data(named) == named
    finished = stage(tmp_path / "run", source="text", path="owner/gone")
    finished.model_folder.mkdir(parents=True)
    (finished.model_folder / "config.json").write_text("{}")
    assert pin_data(finished) == finished
    assert moving.asked == []
