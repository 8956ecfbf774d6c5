"""Code that comes with a model: refused by name, never imported unless allowed, and said when it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from yarn_train import remote_code
from yarn_train.errors import ConfigError
from yarn_train.model.load import load_config

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM

pathlib.Path({mark!r}).touch()


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
AUTO_MAP = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies such code before it imports it; here below tmp_path, and it never asks."""
    for name in ("transformers.dynamic_module_utils.HF_MODULES_CACHE", "transformers.utils.hub.HF_MODULES_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "modules"), raising=False)

    def asked(*_: object) -> str:
        raise AssertionError("the user was asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Exists once the model's code has been run."""
    return tmp_path / "it_was_run"


@pytest.fixture
def mine(tiny_model: Path, tmp_path: Path, mark: Path) -> Path:
    """The tiny model as an architecture of its own."""
    folder = tmp_path / "mine"
    shutil.copytree(tiny_model, folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "modeling_mine.py").write_text(CODE.format(mark=str(mark)))
    return folder


def test_it_is_refused_by_name_and_not_imported(
    train: Callable[..., Path], tiny_args: list[str], mine: Path, mark: Path, tmp_path: Path
) -> None:
    words = [word for word in tiny_args if not word.startswith("model.path")]
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", *words, f"model.path={mine}")
    (problem,) = error.value.problems
    assert problem == (
        f"model.path: got '{mine}, which needs its own code in modeling_mine.py'; allowed: models that transformers "
        "has itself; fix: read that code; if you trust it, set model.trust_remote_code=true"
    )
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


def test_allowed_it_is_trained_and_said(
    train: Callable[..., Path],
    tiny_args: list[str],
    mine: Path,
    mark: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for word in tiny_args if not word.startswith(("model.path", "train.steps"))]
    words += ["train.steps=2", f"model.path={mine}", "model.trust_remote_code=true"]
    run = train(tmp_path / "run", *words)
    assert mark.exists()
    assert "model.trust_remote_code: MineConfig is code of the model's own" in capsys.readouterr().out
    assert not remote_code.may_run(), "the permission ends with the run"
    exported = run / "01_s4" / "model"
    assert (exported / "modeling_mine.py").is_file()
    again = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert type(again).__name__ == "MineForCausalLM"


def test_an_architecture_that_transformers_has_is_never_given_to_code_of_the_folder(mine: Path, mark: Path) -> None:
    described = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**described, "model_type": "llama"}))
    for yes in (False, True):
        with remote_code.allowed(yes):
            assert type(load_config(str(mine))).__name__ == "LlamaConfig"
    assert not mark.exists()


def test_code_of_another_repository_is_named_with_it() -> None:
    described = {"model_type": "x", "auto_map": {"AutoConfig": "some/where--conf.X", "AutoModel": ["model.X", None]}}
    assert remote_code.needed(described) == ["model.py", "some/where: conf.py"]
    assert remote_code.needed({**described, "model_type": "llama"}) == []
