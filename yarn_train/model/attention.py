"""The attention operator, and the attention functions given to transformers, one per kernel of the registry.

Kernels are reached through transformers' own attention interface, so any RoPE architecture works unchanged. A name that
is not in transformers' mask registry gets no mask at all, which is what makes a 64k segment possible: causality and
document boundaries are rectangles of kernel calls, never a [64k, 64k] tensor.

All of them call one operator, ``yarn_train::attention``, so that compilation, traces under fake tensors and recompute
policies see one opaque thing with one output and one log-sum-exp, whatever the kernel and the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library
from torch._guards import TracingContext
from transformers import AttentionInterface

from . import kernels, windows
from .documents import apart, causal_squares, end_to_end, from_table, joined, table
from .kept import through_store
from .merge import Results, new_lse, seq_major
from .primitives import primitive_for
from .registry import IMPLEMENTATIONS
from .spans import Documents, Rectangle

# (query, key, value, scale, table of documents, window) -> output [B, H, S, D]
Attend = Callable[[Tensor, Tensor, Tensor, float, Tensor | None, int], Tensor]


@library.custom_op("yarn_train::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, scale: float, documents: Tensor | None, window: int = 0
) -> tuple[Tensor, Tensor]:
    """Causal attention of whole sequences, inside of each document.

    Args:
        q: [B, H, S, D]; k, v: [B, Hkv, S, D].
        kernel: a name of ``primitives.PRIMITIVES``.
        documents: see ``documents.table``; None is one document per sequence.
        window: tokens that a query sees, itself and those before; 0 is all of them.

    Returns:
        output [B, H, S, D] (in memory [B, S, H, D]) and its log-sum-exp [B, H, S]; only the output has a gradient.

    Raises:
        ValueError: the documents are not those of these sequences.
    """
    return detached(through_store(lambda: _forward(q, k, v, kernel, scale, documents, window)))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, scale: float, documents: Tensor | None, window: int
) -> Results:
    rows, length = q.shape[0], q.shape[2]
    narrow = 0 < window < length
    if documents is None and not narrow:
        return kernels.attend(kernel, q, k, v, scale, [Rectangle(0, length, 0, length, True)])
    starts = from_table(documents, rows, length)
    whole = (end_to_end(q), end_to_end(k), end_to_end(v), scale)
    if narrow:
        out, lse = windows.attend(kernel, *whole, windows.band(starts, length, window))
    else:
        out, lse = kernels.attend(kernel, *whole, causal_squares(starts, length))
    return apart(out, rows), apart(lse, rows).contiguous()


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, scale: float, documents: Tensor | None, window: int = 0
) -> tuple[Tensor, Tensor]:
    return fake_result(q)


@library.custom_op("yarn_train::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor | None,
    kernel: str,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attention` by q, k and v."""
    rows, length = q.shape[0], q.shape[2]
    narrow = 0 < window < length
    if documents is None and not narrow:
        whole = [Rectangle(0, length, 0, length, True)]
        return kernels.attend_backward(kernel, dout, q, k, v, out, lse, scale, whole)
    starts = from_table(documents, rows, length)
    inputs = (end_to_end(dout), end_to_end(q), end_to_end(k), end_to_end(v), end_to_end(out), joined(lse))
    if narrow:
        dq, dk, dv = windows.attend_backward(kernel, *inputs, scale, windows.band(starts, length, window))
    else:
        dq, dk, dv = kernels.attend_backward(kernel, *inputs, scale, causal_squares(starts, length))
    return apart(dq, rows), apart(dk, rows), apart(dv, rows)


@attention_backward.register_fake
def _(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor | None,
    kernel: str,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    return seq_major(q), seq_major(k), seq_major(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.kernel, ctx.scale, documents, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, documents)


def _backward(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = attention_backward(dout, *ctx.saved_tensors, ctx.kernel, ctx.scale, ctx.window)
    return *gradients, None, None, None, None


attention.register_autograd(_backward, setup_context=_save)


def detached(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Aliases of a result: what a store keeps must not become part of the graph it is kept for."""
    return result[0].detach(), result[1].detach()


def fake_result(q: Tensor) -> tuple[Tensor, Tensor]:
    """The (out, lse) of an attention operator under fake tensors.

    It goes through the store like a real result, so that a trace of a step sees what the recompute policy keeps; not so
    while a graph is compiled, because the store then belongs to the real step that waits for the compiler.
    """

    def compute() -> tuple[Tensor, Tensor]:
        return seq_major(q), new_lse(q)

    return compute() if TracingContext.try_get() else detached(through_store(compute))


def local_attend(kernel: str) -> Attend:
    """Attention of whole sequences on this rank; `kernel` is a name of our config."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Tensor | None, window: int) -> Tensor:
        return attention(q, k, v, primitive_for(kernel, q.device.type, q.dtype), scale, documents, window)[0]

    return attend


def attention_function(attend: Attend) -> Callable[..., tuple[Tensor, None]]:
    """`attend` in the form in which transformers calls an attention implementation."""

    def causal_attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        documents: Documents | Tensor | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Causal attention inside each document, without a mask tensor.

        Args:
            query: [batch, heads, tokens, head_dim], rotated.
            key, value: [batch, kv_heads, tokens, head_dim].
            documents: per sequence, where its documents start, best as a table; None is one document.
            sliding_window: tokens that a query of this layer sees, itself and those before; None is all.

        Returns:
            [batch, tokens, heads, head_dim] and None (no attention weights).

        Raises:
            ValueError: something was given that is not applied here.
        """
        refuse_ignored(query, key, attention_mask, dropout, kwargs)
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        if documents is not None and not isinstance(documents, Tensor):
            documents = table(documents)
        out = attend(query, key, value, float(scale), documents, sliding_window or 0)
        return out.transpose(1, 2).contiguous(), None

    return causal_attention


def refuse_ignored(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]) -> None:
    """Raise a ValueError that names what was given and would not be applied."""
    ignored = {
        "a mask": mask is not None,
        "a softcap": kwargs.get("softcap") is not None,
        "attention sinks": kwargs.get("s_aux") is not None,
        "cached keys": query.shape[2] != key.shape[2],
        f"dropout {dropout}": dropout > 0,
    }
    if any(ignored.values()):
        given = ", ".join(what for what, is_given in ignored.items() if is_given)
        raise ValueError(f"causal attention does not apply {given}; use another model.attention or another base model")


def register(implementation: str, attend: Attend) -> None:
    """Make `attend` known to transformers under the name `implementation`."""
    AttentionInterface.register(implementation, attention_function(attend))


for _kernel, _name in IMPLEMENTATIONS.items():
    register(_name, local_attend(_kernel))
