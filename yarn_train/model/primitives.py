"""Attention kernels that give back and take the log-sum-exp of one dense or causal rectangle.

A primitive's backward works with the output and log-sum-exp of a LONGER key range than it is given, since
p = exp(scale * q k - lse) and delta = sum(dout * out) only need the final values: that is what lets ring attention
compute gradients one shard of keys at a time.

Shapes, everywhere: q, out, dout [B, H, Sq, D]; k, v [B, Hkv, Sk, D] with H a multiple of Hkv; lse [B, H, Sq], natural
logarithm, float32 (float64 for float64 inputs). Tensors of the first kind lie in memory as [B, S, H, D]: what
projections make and what every kernel reads without a copy. A causal rectangle has Sq == Sk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import cpu, cudnn, eager, efficient, flash_attn2, flash_attn3, flash_attn4, flex, sdpa
from .merge import Gradients, Results
from .varlen import Varlen


@dataclass(frozen=True)
class Primitive:
    """forward(q, k, v, causal, scale) -> (out, lse); backward(dout, q, k, v, out, lse, causal, scale) -> gradients.

    Attributes:
        varlen: the same kernel for many causal squares in one call, if it has that form.
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], Results]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], Gradients]
    varlen: Varlen | None = None


PRIMITIVES = {
    "cpu": Primitive(cpu.forward, cpu.backward),
    "flash": Primitive(sdpa.forward, sdpa.backward, sdpa.VARLEN),
    "efficient": Primitive(efficient.forward, efficient.backward, efficient.VARLEN),
    "cudnn": Primitive(cudnn.forward, cudnn.backward),
    "flash_attention_2": Primitive(flash_attn2.forward, flash_attn2.backward, flash_attn2.VARLEN),
    "flash_attention_3": Primitive(flash_attn3.forward, flash_attn3.backward, flash_attn3.VARLEN),
    "flash_attention_4": Primitive(flash_attn4.forward, flash_attn4.backward, flash_attn4.VARLEN),
    "flex": Primitive(flex.forward, flex.backward, flex.VARLEN),
    "eager": Primitive(eager.forward, eager.backward),
}


def primitive_for(kernel: str, device_type: str, dtype: torch.dtype) -> str:
    """Name of the primitive that runs a kernel of our config: sdpa is pinned, never left to torch's own choice."""
    if kernel in ("sdpa", "sdpa_flash") and device_type == "cpu":
        return "cpu"
    if kernel == "sdpa":
        return "flash" if dtype in (torch.bfloat16, torch.float16) else "efficient"
    return {"sdpa_flash": "flash", "sdpa_cudnn": "cudnn"}.get(kernel, kernel)
