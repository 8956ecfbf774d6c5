"""The attention kernel registry: which kernel runs, why, and the attention functions given to transformers.

Kernels are reached through transformers' own attention interface, so any RoPE architecture works unchanged. A name that
is not in transformers' mask registry gets no mask at all, which is what makes a 64k segment possible: causality is a
flag of the kernel, never a [64k, 64k] tensor.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from ..errors import ConfigError, problem

SDPA = "yarn_train_sdpa"


@dataclass(frozen=True)
class Kernel:
    """A chosen kernel: its name in our config, its name inside transformers, and why it was taken."""

    name: str
    implementation: str
    reason: str


def choose_kernel(requested: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel to run.

    Raises:
        ConfigError: a kernel asked for by name cannot run here; says what is missing and how to get it.
    """
    missing = flash_attention_2_missing(device, dtype)
    if requested == "flash_attention_2" and missing:
        raise ConfigError(
            problem("model.attention", requested, "kernels that can run here", f"{missing}; or model.attention=auto")
        )
    if requested != "sdpa" and not missing:
        version = importlib.metadata.version("flash_attn")
        return Kernel("flash_attention_2", "flash_attention_2", f"flash_attn {version} on {device.type}, {dtype}")
    reason = "asked for by name" if requested == "sdpa" else f"flash_attention_2 not used: {missing}"
    return Kernel("sdpa", SDPA, f"torch {torch.__version__} SDPA; {reason}")


def flash_attention_2_missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """What stands in the way of flash_attention_2, in words, or None when it can run."""
    if device.type != "cuda":
        return "it needs a CUDA GPU and this process computes on the CPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 or float16 and the compute dtype is {dtype}; set model.dtype=bfloat16"
    if importlib.util.find_spec("flash_attn") is None:
        return "the flash_attn package is not installed; pip install 'yarn-train[flash]'"
    return None


def causal_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention through torch's SDPA, without a mask tensor.

    Args:
        query: [batch, heads, tokens, head_dim], rotated.
        key, value: [batch, kv_heads, tokens, head_dim].

    Returns:
        [batch, tokens, heads, head_dim] and None (no attention weights).

    Raises:
        ValueError: something was given that this kernel does not apply: a mask, a softcap, attention sinks, a sliding
            window shorter than the keys, or cached keys.
    """
    window = kwargs.get("sliding_window")
    ignored = {
        "a mask": attention_mask is not None,
        "a softcap": kwargs.get("softcap") is not None,
        "attention sinks": kwargs.get("s_aux") is not None,
        f"a sliding window of {window} tokens": isinstance(window, int) and window < key.shape[2],
        "cached keys": query.shape[2] != key.shape[2],
    }
    if any(ignored.values()):
        given = ", ".join(what for what, is_given in ignored.items() if is_given)
        raise ValueError(f"causal_sdpa does not apply {given}; use another model.attention or another base model")
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        scale=scaling,
        is_causal=True,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(SDPA, causal_sdpa)
