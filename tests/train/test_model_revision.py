"""A base of the hub: which commit of it a run reads when its branch moves on. The hub is a cache on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from support import ROOT, child_env, launch_command

from yarn_train import model_revision

NAME = "someone/base"
COMMITS = {"old": "1" * 40, "new": "2" * 40}


class Hub:
    """The cache of a hub with one model, whose weights differ from commit to commit."""

    def __init__(self, folder: Path, model: Path):
        self.home, self.place = folder, folder / "hub" / "models--someone--base"
        for number, commit in enumerate(COMMITS.values()):
            snapshot = self.place / "snapshots" / commit
            shutil.copytree(model, snapshot)
            tensors = load_file(snapshot / "model.safetensors")
            file = {name: tensor + 0.01 * number for name, tensor in tensors.items()}
            save_file(file, snapshot / "model.safetensors", metadata={"format": "pt"})

    def point(self, branch: str, commit: str) -> None:
        """A branch or tag is a file with a commit in it."""
        ref = self.place / "refs" / branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(COMMITS[commit])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """train.py without a connection."""
        env = {**child_env(), "HF_HOME": str(self.home)}
        env.pop("HF_HUB_CACHE", None)
        return subprocess.run(
            launch_command(*words), cwd=ROOT, capture_output=True, text=True, timeout=280, env=env, check=False
        )


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path) -> Hub:
    return Hub(tmp_path / "hub_home", tiny_model)


def commit_of(run: Path) -> str:
    model = json.loads((run / "run.json").read_text())["model"]
    assert model["path"] == NAME
    return str(model["commit"])


def test_a_run_keeps_the_commit_it_began_with(hub: Hub, tiny_args: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny_args if not word.startswith("model.path")]
    words += [f"model.path={NAME}", "train.steps=2", "checkpoint.every=1"]

    def train(name: str, *more: str) -> Path:
        done = hub.run(*words, f"run.dir={tmp_path / name}", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path / name

    hub.point("main", "old")
    run = train("run", "train.stop_after=1")
    assert commit_of(run) == COMMITS["old"]
    hub.point("main", "new")
    assert commit_of(train("run")) == COMMITS["old"]
    assert commit_of(train("moved", "train.stop_after=1")) == COMMITS["new"]
    first = {
        name: json.loads((tmp_path / name / "01_s4/metrics.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("run", "moved")
    }
    assert first["run"] != first["moved"]


def test_a_folder_has_no_revision(
    tiny_model: Path, tiny_args: list[str], train: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r"model\.revision: got 'v1'; allowed: null for a folder"):
        train(tmp_path / "run", *tiny_args, "model.revision=v1")
    with model_revision.pinned(str(tiny_model), None):
        assert model_revision.of(str(tiny_model)) is None
    train(tmp_path / "run", *tiny_args, "train.steps=1", "schedule.warmup_steps=1")
    assert json.loads((tmp_path / "run/run.json").read_text())["model"]["commit"] is None


def test_a_rank_that_read_another_commit_does_not_go_on() -> None:
    with model_revision.pinned(NAME, None, COMMITS["old"]):
        model_revision.agreed(NAME, COMMITS["old"])
        with pytest.raises(Exception, match=f"allowed: rank 0's commit {COMMITS['new']}"):
            model_revision.agreed(NAME, COMMITS["new"])
    assert model_revision.of(NAME) is None


def test_the_hub_is_asked_once_and_where_it_must_not_be_asked_its_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.point("main", "old")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.home / "hub"))
    asked = []

    def model_info(path: str, revision: str | None, timeout: float) -> SimpleNamespace:
        asked.append((path, revision))
        if revision == "gone":
            raise OSError("no connection")
        return SimpleNamespace(sha=COMMITS["new"])

    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    for ask, revision, expected in (
        (True, None, "new"),
        (True, "v1", "new"),
        (False, None, "old"),
    ):
        with model_revision.pinned(NAME, revision, ask=ask):
            assert model_revision.of(NAME) == COMMITS[expected]
    with model_revision.pinned(NAME, None, COMMITS["old"]):
        assert model_revision.of(NAME) == COMMITS["old"]
    hub.point("gone", "old")
    with model_revision.pinned(NAME, "gone"):
        assert model_revision.of(NAME) == COMMITS["old"]
    assert asked == [(NAME, None), (NAME, "v1"), (NAME, "gone")]


def test_what_nobody_knows_is_left_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with model_revision.pinned("no/where", "v2"):
        assert model_revision.of("no/where") == "v2"
        assert model_revision.commit("no/where") is None
    assert os.environ.get("HF_HOME") != str(tmp_path)
