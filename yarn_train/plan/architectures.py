"""Architectures of the models the paper extends: a plan needs a few numbers of them, and no network.

Copied from the config.json of each hub id (Llama 2, Llama 3.1 and Mistral releases); weights are never needed.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig, MistralConfig, PretrainedConfig

from .. import model_revision
from ..config import Config
from ..model.load import load_config
from ..rope.undo import unscaled

_LLAMA2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA2_7B = {
    **_LLAMA2,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
_LLAMA2_13B = {
    **_LLAMA2,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_LLAMA2_70B = {
    **_LLAMA2,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
_MISTRAL_7B = {
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,  # as the paper trained it
}
KNOWN: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": (LlamaConfig, _LLAMA2_7B),
    "meta-llama/Llama-2-13b-hf": (LlamaConfig, _LLAMA2_13B),
    "meta-llama/Llama-2-70b-hf": (LlamaConfig, _LLAMA2_70B),
    "mistralai/Mistral-7B-v0.1": (MistralConfig, _MISTRAL_7B),
}


def architecture(cfg: Config) -> tuple[PretrainedConfig, str]:
    """The config of model.path without its RoPE scaling, and a line for the user on where it comes from ("" mostly).

    Raises:
        ConfigError: nothing readable at `path`.
    """
    path = cfg.model.path
    if path not in KNOWN:
        return unscaled(load_config(path), cfg.model, cfg.rope)[0], ""
    try:
        revision = model_revision.of(path)
        return AutoConfig.from_pretrained(path, local_files_only=True, revision=revision, trust_remote_code=False), ""
    except (OSError, ValueError):
        cls, values = KNOWN[path]
        return cls(**values), f"{path} is not in the hub's cache here: planned with the planner's own copy of its sizes"
