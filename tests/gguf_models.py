"""Tiny random models with a tokenizer, saved as this project saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from support import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from yarn_train.config import RopeConfig
from yarn_train.rope.hf import scaled_config, write_both_spellings

BASE = ROOT / "data" / "base"
CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
L3: dict[str, Any] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
L3 |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
PLAIN = RopeConfig(method="none", factor=1.0)


def config(family: str, **changed: Any) -> Any:
    """Two layers, four heads of 32 over two of keys, vocabulary of data/base, pretrained at 64."""
    sizes: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 2, "head_dim": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 64}
    if family == "qwen2":  # no head_dim of its own
        sizes |= {"hidden_size": 128}
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    if family == "mistral":
        ids |= {"sliding_window": None}
    return CONFIGS[family](**{**sizes, **ids, **changed})


def save(folder: Path, family: str = "llama", rope: RopeConfig = PLAIN, **changed: Any) -> Path:
    """A model of random weights, norms and biases included, extended as `rope` says."""
    torch.manual_seed(0)
    scaled = scaled_config(config(family, **changed), rope)
    model = AutoModelForCausalLM.from_config(scaled)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3 if parameter.dim() == 1 else 0.15)
    model.save_pretrained(folder)
    _both(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / file, folder / file)
    return folder


def extend(base: Path, folder: Path, rope: RopeConfig) -> Path:
    """A copy of a trained model with nothing but its RoPE config changed."""
    from transformers import AutoConfig

    shutil.copytree(base, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    scaled_config(AutoConfig.from_pretrained(base), rope).save_pretrained(folder)
    _both(folder)
    return folder


def _both(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(write_both_spellings(json.loads(path.read_text()))))
