"""Which trackers a run gets, what is refused at the start, and that a result does not depend on any of them."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support import course, same_weights

from yarn_train.errors import ConfigError
from yarn_train.metrics import background, tensorboard_sink, wandb_sink
from yarn_train.train import wandb_login

Train = Callable[..., Path]
KEY = "0123456789abcdef0123456789abcdef01234567"
OFF = "wandb: off, as nobody is logged in (wandb login, or tracking.wandb=offline); metrics.jsonl has everything"
MISSING = "wandb: off, as it is not installed (pip install wandb); metrics.jsonl has everything"


def test_without_a_login_nothing_of_a_tracker_is_imported_or_written(
    train: Train,
    tiny_args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(background, "Background", None)
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=1")
    assert [line for line in capsys.readouterr().out.splitlines() if "wandb" in line] == [f"tracking: {OFF}"]
    assert not {"wandb", "tensorboard"} & set(sys.modules)
    assert not {"tracking.json", "wandb", "tensorboard"} & {path.name for path in run.iterdir()}


def test_results_do_not_depend_on_trackers(train: Train, tiny_args: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    plain, before = train(tmp_path / "plain", *tiny_args), set(threading.enumerate())
    states = []
    for name in ("a", "b"):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        more = ["tracking.wandb=offline", "tracking.tensorboard=true"] if name == "b" else []
        run = train(tmp_path / name, *tiny_args, *more)
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
        assert course(run / "01_s4") == course(plain / "01_s4")
        assert same_weights(run / "01_s4" / "model", plain / "01_s4" / "model")
    assert states[0] == states[1]
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if name.startswith(("tracker", "wandb"))] == []
    assert "WANDB_SERVICE" not in os.environ


@pytest.mark.parametrize("where", ["folder", "record"])
def test_a_tracker_without_a_place_to_write_does_not_end_the_run(
    train: Train, tiny_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=1")
    if where == "folder":
        (run / "wandb").write_text("in the way")
        (run / "tensorboard").write_text("in the way")
    else:
        (run / "tracking.json").mkdir()
    train(run, *tiny_args, "tracking.wandb=offline", "tracking.tensorboard=true")
    assert (run / "01_s4" / "model").is_dir()
    out = capsys.readouterr().out
    for name in ("wandb", "tensorboard"):
        assert out.count(f"{name}: off from here on (") == 1


@pytest.mark.parametrize(
    ("asked", "variables", "mode", "line"),
    [
        ("auto", {}, None, OFF),
        ("auto", {"WANDB_API_KEY": KEY}, "online", None),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline", None),
        ("auto", {"WANDB_MODE": "offline"}, "offline", None),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline", None),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, None, None),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, None, None),
        ("auto", {"WANDB_MODE": "online"}, None, OFF),
        ("offline", {}, "offline", None),
        ("online", {"WANDB_MODE": "offline"}, "online", None),
        ("disabled", {"WANDB_API_KEY": KEY}, None, None),
    ],
)
def test_what_auto_means(
    asked: str, variables: Mapping[str, str], mode: str | None, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_login.mode(asked) == wandb_login.Mode(mode, line)


def test_a_login_counts_for_the_server_that_is_used(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def netrc(text: str) -> None:
        (alone / "netrc").write_text(text)
        (alone / "netrc").chmod(0o600)

    monkeypatch.delenv("WANDB_BASE_URL")
    assert not wandb_login.logged_in()
    netrc(f"machine api.wandb.ai login user password {KEY}\n")
    assert wandb_login.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/")
    assert not wandb_login.logged_in()
    netrc(f"machine wandb.example.org:8080 login user password {KEY}\n")
    assert wandb_login.logged_in()
    netrc("machine\n")
    assert not wandb_login.logged_in()


def test_what_wandbs_own_commands_wrote_counts(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_BASE_URL")
    settings = alone / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\nbase_url = https://wandb.example.org\n")
    assert wandb_login.mode("auto").name == "offline"
    assert wandb_login.server() == "https://wandb.example.org"
    settings.write_text("no settings")
    assert wandb_login.mode("auto") == wandb_login.Mode(None, OFF)


def test_what_cannot_be_had_is_refused_in_the_one_list(
    train: Train, tiny_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard_sink, "installed", lambda: False)
    words = [*tiny_args, "tracking.wandb=online", "tracking.tensorboard=true", "optim.lr=-1"]
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", *words)
    assert len(error.value.problems) == 3
    text = str(error.value)
    assert "tracking.wandb: got 'online'; allowed: auto, offline or disabled, as nobody is logged in to http" in text
    assert "fix: wandb login, or set tracking.wandb=offline" in text
    assert "fix: pip install tensorboard" in text
    assert not (tmp_path / "run" / "run.json").exists()

    monkeypatch.setattr(wandb_sink, "installed", lambda: False)
    assert wandb_login.mode("auto") == wandb_login.Mode(None, MISSING)
    (problem,) = wandb_login.problems("offline")
    assert "fix: pip install wandb" in problem
