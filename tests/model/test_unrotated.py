"""A cache of keys before rotation: the stand-in for rotary modules, the rotation inside attention, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, DynamicCache, LlamaConfig, PhiConfig, SmolLM3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from yarn_train.config import RopeConfig
from yarn_train.errors import ConfigError
from yarn_train.model.unrotated import Rotation, dynamic, fixed, unrotated
from yarn_train.rope.frequencies import dynamic_factor, rope_table

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 16,
    "pad_token_id": None,
}
TABLE = rope_table("yarn", dim=8, theta=1e4, original_length=16, factor=4.0)


def llama(**changed: Any) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, "head_dim": 8, **changed})


def built(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def states(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_rotates_by_nothing_bit_for_bit(dtype: torch.dtype):
    q, k = states(2, 4, 5, 8, dtype=dtype), states(2, 2, 5, 8, dtype=dtype)
    cos, sin = Rotation(fixed(TABLE))(q, torch.arange(5).expand(2, 5))
    assert cos.dtype == sin.dtype == dtype
    assert all(map(torch.equal, apply_rotary_pos_emb(q, k, cos, sin), (q, k)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_rotates_as_the_model_would_have_bit_for_bit(dtype: torch.dtype):
    config = llama(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    config.rope_parameters["original_max_position_embeddings"] = 16
    q, k = states(2, 4, 9, 8, dtype=dtype), states(2, 2, 9, 8, dtype=dtype)
    positions = torch.arange(9).expand(2, 9)
    wanted = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, positions))
    rotation = Rotation(fixed(TABLE))
    rotation(q, positions)
    assert all(map(torch.equal, rotation.rotate(q, k), wanted))
    rotation(q[:, :, -1:], positions[:, -1:])  # one more token: its query, and all keys
    assert all(map(torch.equal, rotation.rotate(q[:, :, -1:], k), (wanted[0][:, :, -1:], wanted[1])))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [llama(), PhiConfig(**SIZES, partial_rotary_factor=0.5)], ids=["llama", "phi"])
def test_the_cache_holds_keys_before_rotation(config: Any, dtype: torch.dtype):
    model = built(config).to(dtype)
    ids = torch.arange(6).expand(2, 6)
    projected: list[torch.Tensor] = []
    model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda m, i, out: projected.append(out))
    expected = model(ids, use_cache=False).logits
    with unrotated(model):
        projected.clear()
        cache = DynamicCache()
        logits = model(ids, past_key_values=cache, use_cache=True).logits
    held = cache.layers[0].keys
    assert held is not None
    assert torch.equal(held, projected[0].view(2, 6, *held.shape[1::2]).transpose(1, 2))
    assert torch.allclose(logits, expected, atol=1e-5 if dtype == torch.float32 else 0.05)


REFUSED = {
    "interleaved": (CohereConfig(**SIZES), "rotates other pairs"),
    "layers without rotation": (SmolLM3Config(**SIZES, no_rope_layers=[1, 0]), "not in every layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_rotations_are_refused_and_the_model_is_as_before(name: str):
    config, reason = REFUSED[name]
    model = built(config)
    rotary, attention = model.model.rotary_emb, model.config._attn_implementation
    with pytest.raises(ConfigError, match=reason), unrotated(model):
        pass
    assert model.model.rotary_emb is rotary
    assert model.config._attn_implementation == attention


def test_a_model_without_rotary_module_is_refused():
    model = built(llama())
    model.model.rotary_emb = torch.nn.Identity()
    with pytest.raises(ConfigError, match="no rotary module"), unrotated(model):
        pass


@pytest.mark.parametrize("positions", [[[1, 1, 0, 1], [0, 1, 2, 3]], [[0, 1, 2, 3], [0, 0, 1, 2]], [[0, 1, 0, 1]] * 2])
def test_padding_and_packing_are_refused(positions: list[list[int]]):
    with pytest.raises(ValueError, match="without padding"):
        Rotation(fixed(TABLE))(states(2, 4, 8), torch.tensor(positions))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 64])
def test_dynamic_ntk_is_the_formula_of_transformers(length: int):
    config = llama(rope_parameters={"rope_type": "dynamic", "factor": 1.0, "rope_theta": 1e4})
    theirs, scaling = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    ours = dynamic(llama(), RopeConfig(method="ntk"))(length)
    assert torch.allclose(ours.inv_freq, theirs, rtol=1e-6, atol=0.0)
    assert ours.attention_factor == scaling == 1.0


@pytest.mark.parametrize("method", ["pi", "ntk", "yarn"])
def test_the_table_and_the_temperature_follow_the_length(method: str):
    tables = dynamic(llama(), RopeConfig(method=method, factor=32.0))
    for length, factor in ((1, 1.0), (16, 1.0), (17, 17 / 16), (48, 3.0)):
        expected = rope_table(method, dim=8, theta=1e4, original_length=16, factor=factor)
        found = tables(length)
        assert torch.equal(found.inv_freq, expected.inv_freq)
        assert found.attention_factor == expected.attention_factor
    assert (tables(48).attention_factor > 1) == (method == "yarn")


def test_a_length_that_only_the_options_say_is_taken():
    config = llama()
    vars(config)["max_position_embeddings"] = None
    tables = dynamic(config, RopeConfig(method="pi", original_max_position_embeddings=8))
    plain = rope_table("none", dim=8, theta=1e4, original_length=8, factor=1.0)
    assert torch.equal(tables(32).inv_freq, plain.inv_freq / 4)


def test_a_scaled_base_has_no_dynamic_scale():
    config = llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ConfigError, match="unscaled"):
        dynamic(config, RopeConfig(method="yarn"))


@pytest.mark.parametrize(("length", "original"), [(0, 16), (4, 0)])
def test_lengths_below_one_are_refused(length: int, original: int):
    with pytest.raises(ValueError, match="at least 1"):
        dynamic_factor(length, original)
