"""Next-token cross-entropy as a SUM over valid tokens: with all logits, with one chunk of them at a time, or fused.

All forms return a sum so that the caller can divide by the global number of valid tokens: the loss and its gradients
are then the same for every split of a batch into ranks, micro-batches and shards.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F

from ..data.batch import IGNORE_INDEX
from ..errors import ConfigError, problem

CPU_CHUNK_LOGITS = 2**22  # 16 MiB of fp32 logits: stays in a CPU's last-level cache
GPU_CHUNK_LOGITS = 2**27  # 512 MiB of fp32 logits: large enough to keep a GPU's matrix units busy
CPU_CHUNKS_AT_ONCE = 8  # 64 MiB in bf16
MIN_CHUNK_TOKENS = 128
MAX_LOGITS = 2**31 - 1


def full_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy through the complete logits matrix.

    Args:
        hidden: final hidden states, [tokens, hidden_size].
        weight: output embedding, [vocab, hidden_size].
        labels: ALREADY shifted targets, [tokens]; ``IGNORE_INDEX`` is not counted.

    Returns:
        fp32 scalar.

    Raises:
        ConfigError: more logits than 32-bit kernels can index.
    """
    missing = loss_missing("full", hidden.device, hidden.shape[0] * weight.shape[0])
    if missing:
        raise ConfigError(problem("memory.loss", "full", "chunked | fused", missing))
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def chunked_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Same value and gradients as :func:`full_loss`, but never more than one chunk of logits exists.

    The gradients are computed in the forward pass, chunk by chunk, while that chunk's logits are at hand, so the head's
    matrix product is not run a second time in backward.
    """
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _ChunkedLoss.apply(hidden, weight, labels, chunk_tokens(weight), needs_grad)


def chunk_tokens(weight: torch.Tensor) -> int:
    """Tokens per chunk such that a chunk's fp32 logits fit the device's budget."""
    budget = GPU_CHUNK_LOGITS if weight.is_cuda else CPU_CHUNK_LOGITS
    return max(MIN_CHUNK_TOKENS, budget // weight.shape[0])


def fused_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """:func:`chunked_loss` by Liger's kernels (GPU): softmax and its gradient in place of the chunk's own logits.

    Logits and their gradients are rounded to the inputs' dtype, the weight's gradient is summed over chunks in fp32 and
    rounded once, as in :func:`chunked_loss`. Liger's backward scales its saved gradients IN PLACE: once only.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction  # imports triton, so not before it is asked for

    if torch.is_grad_enabled() and weight.requires_grad and not hidden.requires_grad:
        raise ValueError("fused_loss gives no gradient to the head alone; use chunked_loss where the decoder is frozen")
    # bias, class weights, ignored label, z-loss, smoothing, reduction, softcap, return z-loss, dtype of the sums
    options = (None, None, IGNORE_INDEX, 0.0, 0.0, "sum", None, False, torch.float32)
    loss: torch.Tensor = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels, *options)[0]
    return loss


def loss_missing(name: str, device: torch.device, logits: int) -> str | None:
    """What stands in the way of the loss `name`, in words, or None when it can run.

    Args:
        logits: tokens of one forward pass on one rank times vocabulary.
    """
    if name == "full" and logits > MAX_LOGITS:
        return f"one pass has {logits:,} logits, more than 32-bit kernels can index ({MAX_LOGITS:,})"
    if name != "fused":
        return None
    if device.type != "cuda":
        return f"it needs a CUDA GPU and this process computes on the {device.type.upper()}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the liger-kernel package is not installed; pip install 'yarn-train[fused]'"
    return None


LOSSES = {"full": full_loss, "chunked": chunked_loss, "fused": fused_loss}


def chunks_at_once(weight: torch.Tensor) -> int:
    """Chunks whose logit gradients wait in the head's dtype to be multiplied at once.

    On a CPU a product of few tokens is slow, and every one adds the whole of the head's gradient up once more. Where
    the head is fp32 a chunk's gradients lie in its logits' own memory.
    """
    return 1 if weight.is_cuda or weight.dtype == torch.float32 else CPU_CHUNKS_AT_ONCE


def _softmax_in_place(
    logits: torch.Tensor, product: torch.Tensor, target: torch.Tensor, needs_grad: bool
) -> torch.Tensor:
    """Summed loss of one chunk; its gradient by the logits replaces `product`.

    Args:
        logits: scratch memory [tokens, vocab], fp32: that of `product` itself where its dtype is the same.
        product: the chunk's logits in the head's dtype.
        target: [tokens].
    """
    if product.dtype != logits.dtype:
        logits.copy_(product)
    valid = target != IGNORE_INDEX
    index = target.clamp_min(0).unsqueeze(1)
    right = logits.gather(1, index)
    top = logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    loss = ((total.log() + top - right).squeeze(1) * valid).sum()
    if needs_grad:
        logits.mul_(valid.unsqueeze(1) / total)
        logits.scatter_add_(1, index, -valid.unsqueeze(1).float())
        if product.dtype != logits.dtype:
            product.copy_(logits)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int, needs_grad: bool
    ) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        # fp32 accumulator: bf16 sums over hundreds of chunks would lose the small contributions
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        many = chunks_at_once(weight)
        # made once: fresh memory for every chunk costs a CPU more in page faults than the softmax
        logits = weight.new_empty(min(chunk, len(hidden)), len(weight), dtype=torch.float32)
        fp32 = weight.dtype == torch.float32
        products = logits if fp32 else weight.new_empty(min(many * chunk, len(hidden)), len(weight))
        for first in range(0, len(hidden), many * chunk):
            for start in range(first, min(first + many * chunk, len(hidden)), chunk):
                part, target = hidden[start : start + chunk], labels[start : start + chunk]
                product = products[start - first : start - first + len(part)]
                torch.mm(part, weight.t(), out=product)
                loss += _softmax_in_place(logits[: len(part)], product, target, needs_grad)
            if grad_hidden is None or grad_weight is None:
                continue
            part = hidden[first : first + many * chunk]
            torch.mm(products[: len(part)], weight, out=grad_hidden[first : first + many * chunk])
            grad_weight += torch.mm(products[: len(part)].t(), part)
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale.to(grad_hidden.dtype), (grad_weight * scale).to(ctx.weight_dtype), None, None, None
