"""What GPU tests share."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig


@pytest.fixture
def llama_1b() -> LlamaConfig:
    """Llama 3.2 1B's sizes: fp32 AdamW state and a 64k segment fit one 80 GB card."""
    return LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
