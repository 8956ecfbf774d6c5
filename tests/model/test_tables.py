"""A table set in a loaded model gives the numbers of a model that was built with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig, Qwen3Config

from yarn_train.config import RopeConfig
from yarn_train.model.tables import set_table
from yarn_train.rope.hf import RopeTableError, scaled_config, table_for

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "phi": PhiConfig(**SIZES, partial_rotary_factor=0.5),
}
IDS = torch.arange(40).unsqueeze(0)


def built(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_model_computes_as_if_it_had_been_built_with_the_table(kind: str):
    config, model = CONFIGS[kind], built(CONFIGS[kind])
    seen = [model(IDS).logits]
    for method in ("pi", "yarn", "none"):  # one after the other, and back
        rope = RopeConfig(method=method, factor=4.0 if method != "none" else 1.0)
        set_table(model, table_for(config, rope))
        seen.append(model(IDS).logits)
        assert torch.equal(seen[-1], built(scaled_config(config, rope))(IDS).logits)
    assert torch.equal(seen[0], seen[3])
    assert not torch.allclose(seen[0], seen[2], atol=1e-2)


def test_a_model_that_changes_its_table_itself_is_refused():
    config = LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 1.0, "rope_theta": 1e4})
    with pytest.raises(RopeTableError, match="may change the table"):
        set_table(built(config), table_for(CONFIGS["llama"], RopeConfig(method="pi")))


def test_a_module_that_would_ignore_the_temperature_is_refused():
    model = built(CONFIGS["llama"])
    del model.model.rotary_emb.attention_scaling
    with pytest.raises(RopeTableError, match="attention_scaling"):
        set_table(model, table_for(CONFIGS["llama"], RopeConfig(method="yarn")))
