"""The base model that ships with the project, and the claims the quickstart makes with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support import ROOT, launch_command

from yarn_train.config import DataConfig, EvalConfig, RopeConfig
from yarn_train.data.tokenize import load_tokenizer
from yarn_train.eval.documents import held_out
from yarn_train.eval.perplexity.score import score
from yarn_train.model.load import build_model, load_config
from yarn_train.model.registry import choose_kernel

BASE = ROOT / "data/base"
YARN = RopeConfig(method="yarn", factor=16.0)


@pytest.fixture(scope="module")
def texts() -> list[torch.Tensor]:
    """4352 tokens each of two held-out files of the standard library."""
    source = DataConfig(source="stdlib", held_out=0.1)
    return [tokens for _, tokens in held_out(EvalConfig(documents=2), source, load_tokenizer(BASE), 4352, 4352)]


def perplexity(texts: list[torch.Tensor], window: int, **rope: object) -> float:
    kernel = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    model = build_model(str(BASE), load_config(str(BASE)), dataclasses.replace(YARN, **rope), kernel)
    return score(model, texts, window, 256, 4096 - 256, bos_id=0).perplexity("token_mean")


def test_it_is_what_the_card_says():
    config = load_config(str(BASE))
    assert (config.model_type, config.head_dim, config.max_position_embeddings) == ("llama", 64, 256)
    assert config.vocab_size == len(load_tokenizer(BASE)) == 4096
    assert sum(p.stat().st_size for p in BASE.iterdir()) < 16 * 2**20
    card = (BASE / "README.md").read_text()
    assert "experiment=pretrain_base" in card


def test_the_untouched_base_breaks_beyond_its_length(texts):
    plain = {"method": "none", "factor": 1.0}
    assert perplexity(texts, 4096, **plain) > 3 * perplexity(texts, 256, **plain)


def test_yarn_without_training_beats_pi_and_ntk_at_sixteen_times_the_length(texts):
    yarn = perplexity(texts, 4096)
    assert yarn < perplexity(texts, 4096, method="pi")
    assert yarn < perplexity(texts, 4096, method="ntk")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_quickstart_claims(tmp_path: Path):
    import subprocess

    subprocess.run(launch_command(f"run.dir={tmp_path / 'run'}"), cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "run/eval/perplexity.json").read_text())
    table = {(r["label"], r["window"]): r["perplexity"] for r in rows if r["mode"] == "token_mean"}
    one, two = "YaRN s=16, after 01_s16", "YaRN s=32, after 02_s32"
    assert table["base", 4096] >= 3 * table["base", 256]
    assert table["YaRN s=16, untrained", 4096] < table["PI s=16, untrained", 4096]
    assert table["YaRN s=16, untrained", 4096] < table["NTK-aware s=16, untrained", 4096]
    assert table[one, 4096] < table[one, 256]
    assert table[two, 8192] <= 1.02 * table[two, 4096]
    assert table[one, 8192] > table[one, 4096]
