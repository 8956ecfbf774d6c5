"""Architectures of the measurements, and what a longest sequence takes of them. Never imports torch."""

from __future__ import annotations

from typing import Any

# Shapes of Llama 3.2 1B and 3B and of Llama 3.1 8B, from their config.json; positions as of an unscaled base.
LLAMA_3 = {"vocab_size": 128256, "head_dim": 128, "num_key_value_heads": 8, "rope_theta": 500000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        **LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "3b": {
        **LLAMA_3,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "8b": {
        **LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
}
for _size in ("1b", "3b"):
    SHAPES[f"{_size}-4layers"] = {**SHAPES[_size], "num_hidden_layers": 4}
STATE = 16  # bytes per parameter: weight, gradient and AdamW's two moments in float32


def layer_state_bytes(name: str) -> int:
    """Of all layers, in training with AdamW in float32."""
    shape = SHAPES[name]
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"] + shape["num_key_value_heads"]
    layer = 2 * hidden * shape["head_dim"] * heads + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    return int(STATE * layer * shape["num_hidden_layers"])


def kept_bytes(name: str) -> int:
    """Per token, in host memory: each layer's input in bfloat16, by the leanest policy."""
    return int(2 * SHAPES[name]["hidden_size"] * SHAPES[name]["num_hidden_layers"])
