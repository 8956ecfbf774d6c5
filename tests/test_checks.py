"""What ``app.check_run`` finds before weights load: each thing that cannot run here is a named problem."""

from __future__ import annotations

import importlib.util

import pytest
from transformers import FalconConfig, LlamaConfig, StableLmConfig

from yarn_train import app
from yarn_train.dist import environment
from yarn_train.errors import ConfigError
from yarn_train.stages import resolve


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["memory.loss=fused"], "memory.loss: got 'fused'"),
        (["memory.loss=full", "data.seq_len=8388608"], "memory.loss: got 'full'"),
        (["parallel.context=3", "parallel.context_method=ulysses"], "parallel: got 'ulysses=3'"),
        (["engine.name=deepspeed", "engine.zero_stage=0"], "engine.zero_stage: got 0"),
        (["engine.name=deepspeed"], "engine.name: got 'deepspeed'"),
        (["optim.state=8bit"], "optim.state: got '8bit'"),
        (["parallel.replicate=2"], "parallel: got 2"),
    ],
)
def test_what_cannot_run_here_is_named_before_weights_load(compose, tiny_args, tmp_path, monkeypatch, options, named):
    ranks = 3
    monkeypatch.setattr(environment, "world_size", lambda: ranks)
    installed = importlib.util.find_spec
    absent = {"torchao"} if "engine.zero_stage=0" in options else {"torchao", "deepspeed"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else installed(name, *a))
    stages = resolve(compose(*tiny_args, "train.global_batch_size=3", *options), tmp_path)
    with pytest.raises(ConfigError) as error:
        app.check_run(stages)
    (found,) = error.value.problems
    assert found.startswith(named)


@pytest.mark.parametrize(
    ("config", "mask", "named"),
    [
        (StableLmConfig, "block", "data.document_mask: got 'block, and stablelm: documents do not reach"),
        (StableLmConfig, "none", None),
        (LlamaConfig, "block", None),
        (FalconConfig, "none", "model.path: got 'falcon: attention that only its own code computes'"),
    ],
)
def test_architectures_are_tried_before_weights_load(compose, tiny_args, tmp_path, config, mask, named):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    config(**sizes, vocab_size=320, num_key_value_heads=4, intermediate_size=64).save_pretrained(tmp_path / "base")
    options = [*tiny_args, f"model.path={tmp_path / 'base'}", f"data.document_mask={mask}"]
    stages = resolve(compose(*options), tmp_path)
    if named is None:
        app.check_run(stages)
        return
    with pytest.raises(ConfigError) as error:
        app.check_run(stages)
    assert any(line.startswith(named) for line in error.value.problems), error.value.problems
