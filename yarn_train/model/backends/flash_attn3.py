"""FlashAttention-3: the package built from the hopper folder of FlashAttention's repository.

Called by the operators that its extension registers (``flash_attn_3::fwd`` and ``bwd``), as torch itself calls them:
their schema has held since 2025, while the Python functions around them changed names and arguments.
Shapes of whole sequences are those of :mod:`..primitives`, of many documents those of :mod:`..varlen`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..merge import Gradients, Results, seq_major
from ..varlen import Cuts, Varlen, longest, on_device

# The extension itself, and the module that older builds are known by. PyPI has an empty package of the second name that
# hides it: so the extension comes first.
MODULES = ("flash_attn_3._C", "flash_attn_interface")


def operators() -> Any:
    """The package's operators, loaded on first use.

    Raises:
        ImportError: the package is not there, or is not FlashAttention-3.
    """
    found = torch.ops.flash_attn_3
    failures = []
    for module in MODULES:
        if hasattr(found, "fwd") and hasattr(found, "bwd"):
            break
        try:
            importlib.import_module(module)
        except ImportError as error:
            failures.append(f"{module}: {error}")
    if not (hasattr(found, "fwd") and hasattr(found, "bwd")):
        raise ImportError(f"no module registers FlashAttention-3's operators ({'; '.join(failures) or MODULES[1]})")
    return found


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """It takes [B, S, H, D] and knows grouped keys and values."""
    mine = (t.transpose(1, 2) for t in (q, k, v))
    out, lse, *_ = operators().fwd(*mine, softmax_scale=scale, is_causal=causal, num_splits=1)
    return out.transpose(1, 2), lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`forward`; the package writes the gradients into the tensors it is given."""
    dq, dk, dv = (seq_major(t).transpose(1, 2) for t in (q, k, v))
    mine = (t.transpose(1, 2) for t in (dout, q, k, v, out))
    operators().bwd(
        *mine, lse.contiguous(), dq, dk, dv, softmax_scale=scale, is_causal=causal, deterministic=_deterministic()
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """:func:`forward` of many documents."""
    where = _documents(cuts, q.device)
    out, lse, *_ = operators().fwd(q, k, v, **where, softmax_scale=scale, is_causal=True, num_splits=1)
    return out, lse


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`varlen_forward`."""
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    where = _documents(cuts, q.device)
    mine = (dout, q, k, v, out, lse.contiguous(), dq, dk, dv)
    operators().bwd(*mine, **where, softmax_scale=scale, is_causal=True, deterministic=_deterministic())
    return dq, dk, dv


def _documents(cuts: Cuts, device: torch.device) -> dict[str, Any]:
    ends, most = on_device(cuts, device), longest(cuts)
    return {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": most, "max_seqlen_k": most}


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


VARLEN = Varlen(varlen_forward, varlen_backward)
