"""The card of an exported model: what it says is what the run was, and the base's licence comes along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from yarn_train.export import export_checkpoint
from yarn_train.train import model_card

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    """A base as it is published: with a card, a licence, its own generation config and a chat template."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    (folder / "README.md").write_text("---\nlicense: llama2\nlanguage: [en, de]\n---\n\n# Theirs\n")
    (folder / "LICENSE.txt").write_text("their licence\n")
    (folder / "NOTICE").write_text("their notice\n")
    generation = {"eos_token_id": [1, 3], "do_sample": True, "temperature": 0.6, "max_length": 32}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def words(tiny_args: list[str], base: Path) -> list[str]:
    kept = [word for word in tiny_args if not word.startswith("model.path")]
    return [*kept, f"model.path={base}", "train.steps=2", "optim.lr=2e-4"]


def head(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def test_a_stage_and_any_checkpoint_carry_card_licence_and_companions(
    train: Callable[..., Path], words: list[str], tmp_path: Path
) -> None:
    run = train(tmp_path / "run", *words)
    again = tmp_path / "again"
    export_checkpoint(run / "01_s4/checkpoints/step_00000002", again)
    for folder in (run / "01_s4/model", again):
        found = head(folder)
        assert (found["license"], found["language"]) == ("llama2", ["en", "de"])
        assert (folder / "LICENSE.txt").read_text() == "their licence\n"
        assert (folder / "NOTICE").read_text() == "their notice\n"
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.generation_config.eos_token_id == [1, 3]
        assert model.generation_config.temperature == 0.6
        assert "max_length" not in json.loads((folder / "generation_config.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.model_max_length == 128
        text = (folder / "README.md").read_text()
        losses = [json.loads(line)["loss"] for line in (run / "01_s4/metrics.jsonl").read_text().splitlines()]
        assert f"| training loss | {losses[0]:.4f} at the first step, {sum(losses) / 2:.4f} over the last 2 |" in text
        for said in (
            "| factor s | 4, absolute: 32 -> 128 tokens |",
            "| attention factor | 1.138629 on cos and sin |",
            "| learning rate | 0.0002,",
            "| source | pg19 |",
            "--max-model-len 128",
            "python ",
        ):
            assert said in text, said
        assert str(tmp_path) not in text.partition("## How it was made")[0]
    manifest = json.loads(next((tmp_path / "cache").rglob("manifest.json")).read_text())
    assert manifest["content_sha256"] in (run / "01_s4/model/README.md").read_text()


def test_an_evaluation_is_added_once(train: Callable[..., Path], words: list[str], tmp_path: Path) -> None:
    asked = ["eval.baselines=false", "eval.windows=[64]", "eval.stride=32", "eval.documents=2"]
    run = train(tmp_path / "run", *[w for w in words if w != "eval=none"], "eval=perplexity", *asked)
    rows = json.loads((run / "eval/perplexity.json").read_text())
    card = run / "01_s4/model/README.md"
    (row,) = [row for row in rows if row["window"] == 64 and row["mode"] == "token_mean"][:1]
    line = f"| 64 | 32 | token_mean | {row['perplexity']:.4g} |"
    assert card.read_text().count(line) == 1
    before = card.read_text()
    model_card.add_results(card.parent, rows, "01_s4")
    assert card.read_text() == before
    model_card.add_results(card.parent, rows, "another")
    assert card.read_text() == before


def test_a_licence_file_without_a_card_is_named(tmp_path: Path, base: Path) -> None:
    from yarn_train.checkpoint.base_files import base_files
    from yarn_train.config import Config, ModelConfig

    (base / "README.md").unlink()
    cfg = Config(model=ModelConfig(path=str(base)))
    found = model_card.front_matter(cfg, base_files(str(base)))
    assert (found["license"], found["license_link"]) == ("other", "LICENSE.txt")
    of_the_hub = Config(model=ModelConfig(path="someone/base"))
    assert model_card.front_matter(of_the_hub, {})["base_model"] == "someone/base"
    assert "license" not in model_card.front_matter(of_the_hub, {})
