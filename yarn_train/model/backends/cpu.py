"""torch's flash attention for CPUs, called by its operators; its backward is our own where that was compiled.

Shapes are those of :mod:`..primitives`. Both know grouped keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Gradients, Results
from . import cpu_backward

aten = torch.ops.aten


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's."""
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """Ours where it takes these tensors, see :mod:`.cpu_backward`, else torch's."""
    if cpu_backward.suits(q, k, v):
        return cpu_backward.backward(dout, q, k, v, out, lse, causal, scale)
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal, scale=scale)
