"""RoPE keys for the sizes that models have: heads of 64 to 256, theta from 10,000 to 50 million; no weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from yarn_train.config import RopeConfig
from yarn_train.gguf.package import GGUFError
from yarn_train.gguf.rope import RopeKeys, agrees, keys_for
from yarn_train.rope import hf

SIZES = [  # theta, numbers per head, L
    (1e4, 128, 4096),  # Llama 2, Yi
    (1e6, 128, 32768),  # Mistral 7B v0.2, Qwen 2.5 and 3
    (1e6, 128, 16384),  # CodeLlama
    (5e5, 128, 8192),  # Llama 3
    (5e5, 64, 8192),  # Llama 3.2 1B
    (1000042.0, 128, 32768),  # Falcon 3
    (5e6, 128, 200_000),  # Yi 200K
    (1e5, 256, 4096),
    (5e7, 256, 4096),
]
KINDS = {"none": "none", "pi": "linear", "yarn": "yarn", "ntk_by_parts": "yarn", "ntk": "none"}


def table(size: tuple[float, int, int], rope: RopeConfig) -> tuple[dict[str, Any], np.ndarray, float]:
    """(rope dict, frequencies, magnitude) as transformers computes them from our export."""
    theta, head, length = size
    base = LlamaConfig(
        hidden_size=2 * head,
        num_attention_heads=2,
        head_dim=head,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    config = hf.scaled_config(base, rope)
    module = LlamaRotaryEmbedding(config)
    return dict(config.rope_parameters), module.inv_freq.float().numpy(), float(module.attention_scaling)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("method", KINDS)
def test_real_sizes_get_keys_of_their_own_name_in_every_architecture(method: str, size: tuple[float, int, int]) -> None:
    given = table(size, RopeConfig(method=method, factor=1.0 if method == "none" else 16.0))
    for arch in ("llama", "qwen2"):
        keys = keys_for(given[0], arch, *given[1:])
        assert (keys.kind, keys.divisors) == (KINDS[method], None)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_table_that_llama_cpp_would_not_compute_is_never_taken_for_one_that_it_would(
    size: tuple[float, int, int],
) -> None:
    params, frequencies, magnitude = table(size, RopeConfig(factor=16.0))
    right = keys_for(params, "llama", frequencies, magnitude)
    theta, kind, factor, length = right.theta, right.kind, right.factor, right.original_length
    for wrong in (
        RopeKeys(theta * 1.01, kind, factor, length),
        RopeKeys(theta, kind, factor * 1.01, length),
        RopeKeys(theta, kind, factor, length * 2),
        RopeKeys(theta, "linear", factor, length, right.attn_factor),
        RopeKeys(theta, kind, factor, length, attn_factor=1.001),
    ):
        assert not agrees(wrong, frequencies, magnitude)
    loose = table(size, RopeConfig(factor=16.0, truncate=False))
    assert keys_for(loose[0], "llama", *loose[1:]).divisors is not None
    with pytest.raises(GGUFError, match="ends"):
        keys_for(loose[0], "qwen2", *loose[1:])
