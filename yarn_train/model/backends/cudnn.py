"""cuDNN's attention, called by torch's operators for it (bfloat16, float16); knows grouped keys and values.

Shapes are those of :mod:`..primitives`. cuDNN gives and takes the log-sum-exp, a natural logarithm, as [B, H, Sq, 1];
torch's own ring attention hands its backward the final one of all keys, as is done here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Gradients, Results
from . import eager

aten = torch.ops.aten


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """One key is no case of cuDNN's ("does not support key/value sequence length 1"): that softmax is a product."""
    if k.shape[2] == 1:
        return eager.forward(q, k, v, causal, scale)
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)
    return out, lse.reshape(q.shape[:3])


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`forward`. Without dropout the random state is not read.

    The gradient of the output is given in the output's own layout, which cuDNN before 9.5.1 takes it to have.
    """
    if k.shape[2] == 1:
        return eager.backward(dout, q, k, v, out, lse, causal, scale)
    dout, out = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (dout, out))
    seed = torch.empty((), dtype=torch.int64, device=q.device)
    sizes = (q.shape[2], k.shape[2])
    stats = lse.contiguous().unsqueeze(-1)
    return aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, stats, seed, seed, None, None, None, *sizes, 0.0, causal, scale=scale
    )
