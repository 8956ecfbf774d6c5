"""What the other trainers start from: the same weights, the same YaRN, as transformers itself runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from bench.gpu import sizes
from yarn_train.config import RopeConfig
from yarn_train.metrics.meter import mfu
from yarn_train.model import flops
from yarn_train.model.load import load_config
from yarn_train.rope import hf as rope_hf

HOPPER = 9  # of compute capabilities
BACKENDS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}  # torch.nn.attention.SDPBackend


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
    """transformers' name of it.

    Its own checks are asked, since several packages have a module flash_attn. From Hopper on torch may take cuDNN's
    kernel for "sdpa", which is faster than FlashAttention-2 there.
    """
    if device != "cuda":
        return "sdpa"
    generation, _ = torch.cuda.get_device_capability()
    if generation == HOPPER and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if generation < HOPPER and is_flash_attn_2_available() else "sdpa"


def attention_of(model: PreTrainedModel, task: dict[str, Any]) -> str:
    """The same, with the kernel that torch itself takes for "sdpa" at this model's shape and length."""
    name, config = attention(task["device"]), model.config
    if name != "sdpa":
        return name
    dtype = torch.bfloat16 if task["device"] == "cuda" else torch.float32
    q, k, v = (
        torch.empty(1, heads, task["tokens"], flops.head_dim(config), dtype=dtype, device=task["device"])
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    )
    for tensor in (q, k, v):
        tensor.requires_grad_()
    choice = torch._fused_sdp_choice(q, k, v, is_causal=True, enable_gqa=True)
    return f"sdpa ({BACKENDS.get(choice, f'backend {choice}')})"


def flops_per_token(model: PreTrainedModel, tokens: int) -> float:
    """By the one formula, of a model that is whole."""
    config = model.config
    width = config.num_attention_heads * flops.head_dim(config)
    return flops.flops_per_token(flops.matmul_parameters(model), config.num_hidden_layers, width, tokens)


def with_mfu(found: dict[str, Any], per_token: float, device: torch.device) -> dict[str, Any]:
    """The numbers of a trainer's steps with the MFU that they are."""
    return {**found, "mfu": mfu(found["tokens_per_second"], per_token, flops.peak_flops(device), 1)}
