"""What the other trainers start from: the same weights, the same YaRN, as transformers itself runs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.gpu import sizes
from yarn_train.config import RopeConfig
from yarn_train.metrics.meter import mfu
from yarn_train.model import flops
from yarn_train.model.load import load_config
from yarn_train.rope import hf as rope_hf


def model(task: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """On the CPU, in `dtype`, with the fastest attention that transformers has here."""
    folder = sizes.ensure_model(Path(task["models"]), task["size"], torch.device(task["device"]))
    rope = RopeConfig(method="yarn", factor=max(1.0, task["tokens"] / sizes.ORIGINAL))
    config = rope_hf.scaled_config(load_config(str(folder)), rope)
    config.use_cache = False
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention(task["device"])
    )
    return loaded


def attention(device: str) -> str:
    """transformers' name of it."""
    return "flash_attention_2" if device == "cuda" and importlib.util.find_spec("flash_attn") else "sdpa"


def flops_per_token(model: PreTrainedModel, tokens: int) -> float:
    """By the one formula, of a model that is whole."""
    config = model.config
    width = config.num_attention_heads * flops.head_dim(config)
    return flops.flops_per_token(flops.matmul_parameters(model), config.num_hidden_layers, width, tokens)


def with_mfu(found: dict[str, Any], per_token: float, device: torch.device) -> dict[str, Any]:
    """The numbers of a trainer's steps with the MFU that they are."""
    return {**found, "mfu": mfu(found["tokens_per_second"], per_token, flops.peak_flops(device), 1)}
