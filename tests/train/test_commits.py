"""A run reads the commit of a hub data set that it began with, however the hub moves on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import metrics
from tables_support import Hub, use_cache, write

from yarn_train.config import DataConfig
from yarn_train.data import hub
from yarn_train.data.manifest import manifest
from yarn_train.errors import CheckpointError, DataError
from yarn_train.train.commits import Commits

OLD, NEW = "a" * 40, "b" * 40
BOOKS: dict[str, Any] = {"source": "text", "path": "owner/books"}


@pytest.fixture
def moving(tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub whose newest commit is OLD, until somebody pushes."""
    hub.find.cache_clear()
    use_cache(monkeypatch, tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    commits = {}
    for commit in (NEW, OLD):
        for split in ("train", "test"):
            texts = [f"{commit[0]} {file.read_text()}" for file in sorted((books / split).glob("*.txt"))]
            write(tmp_path / "hub" / commit / f"{split}.jsonl", texts)
        commits[commit] = tmp_path / "hub" / commit
    return Hub(monkeypatch, commits)


def push(moving: Hub) -> None:
    """NEW becomes the newest commit."""
    moving.commits[NEW] = moving.commits.pop(NEW)
    moving.asked.clear()
    hub.find.cache_clear()


def test_the_first_look_is_kept(moving: Hub, tmp_path: Path):
    first = Commits(tmp_path)
    assert first.pin(DataConfig(**BOOKS)).revision == OLD
    assert first.pin(DataConfig(**BOOKS, revision="main")).revision == "main"  # this hub knows no branches
    first.save()
    push(moving)
    again = Commits(tmp_path)
    assert again.pin(DataConfig(**BOOKS)).revision == OLD
    assert moving.asked == []
    assert again.pin(DataConfig(**{**BOOKS, "path": "owner/other"})).revision == NEW
    assert again.pin(DataConfig(**BOOKS, revision=NEW)).revision == NEW
    assert Commits(tmp_path / "elsewhere").pin(DataConfig(**BOOKS)).revision == NEW


def test_parts_of_a_mixture_are_pinned_one_by_one(moving: Hub, tmp_path: Path):
    mixture = {"books": {**BOOKS, "weight": 1}, "code": {"source": "stdlib", "weight": 2}}
    data = DataConfig(source="mixture", mixture=mixture)
    pinned = Commits(tmp_path).pin(data)
    assert pinned.mixture == {**mixture, "books": {**BOOKS, "weight": 1, "revision": OLD}}
    assert data.mixture == mixture


def test_what_is_not_of_the_hub_or_named_by_cache_asks_nobody(moving: Hub, tmp_path: Path):
    for data in (
        DataConfig(source="stdlib"),
        DataConfig(source="text", path=str(tmp_path / "hub" / OLD)),
        DataConfig(**BOOKS, cache="somewhere"),
    ):
        commits = Commits(tmp_path / "run")
        assert commits.pin(data) == data
        commits.save()
    assert moving.asked == []
    assert not (tmp_path / "run").exists()


@pytest.fixture
def args(tiny_args: list[str]) -> list[str]:
    without = [word for word in tiny_args if not word.startswith(("data.", "train.steps"))]
    return [*without, "data.source=text", "data.path=owner/books", "data.seq_len=64"]


def test_a_run_goes_on_with_its_commit_and_a_complete_one_is_still_complete(
    train: Callable[..., Path], moving: Hub, args: list[str], tmp_path: Path
):
    stages = [
        "curriculum.stages.s4={rope: {factor: 4}, train: {steps: 2}}",
        "curriculum.stages.s8={rope: {factor: 8}, train: {steps: 3}}",
    ]
    evaluation = ["eval.enabled=true", "eval.windows=[32]", "eval.documents=1", "eval.baselines=false"]
    args = [word for word in args if not word.startswith(("rope.factor", "eval"))] + [f"++{one}" for one in stages]
    train(tmp_path / "run", *args, *evaluation, "train.stop_after=1", "schedule.warmup_steps=1")
    push(moving)
    run = train(tmp_path / "run", *args, *evaluation, "schedule.warmup_steps=1")
    assert moving.asked.count(None) == 0
    assert [len(metrics(run / stage)) for stage in ("01_s4", "02_s8")] == [2, 3]
    assert json.loads((run / "commits.json").read_text()) == {"owner/books": OLD}
    (prepared,) = (tmp_path / "data" / "cache").glob("text-train-64-*/")
    assert manifest(prepared)["origin"]["revision"] == OLD
    assert yaml.safe_load((run / "01_s4" / "config.yaml").read_text())["data"]["revision"] is None
    train(tmp_path / "run", *args, *evaluation, "schedule.warmup_steps=1")
    with pytest.raises(CheckpointError, match=rf"data\.revision: was None, now '{NEW}'"):
        train(tmp_path / "run", *args, *evaluation, "schedule.warmup_steps=1", f"data.revision={NEW}")


def test_a_named_folder_may_come_and_go(train: Callable[..., Path], moving: Hub, args: list[str], tmp_path: Path):
    train(tmp_path / "run", *args, "train.steps=3", "train.stop_after=1")
    (prepared,) = (tmp_path / "data" / "cache").glob("text-train-64-*/")
    prepared.rename(tmp_path / "copied")
    push(moving)
    train(tmp_path / "run", *args, "train.steps=3", "train.stop_after=2", f"data.cache={tmp_path / 'copied'}")
    run = train(tmp_path / "run", *args, "train.steps=3")
    assert len(metrics(run / "01_s4")) == 3
    named = [f"data.cache={tmp_path / 'copied'}", f"data.revision={NEW}"]
    with pytest.raises(DataError, match=f"revision='{OLD}'"):
        train(tmp_path / "other", *args, "train.steps=3", *named)
