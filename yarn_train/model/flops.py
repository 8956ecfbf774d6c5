"""Model FLOPs and peak rates, for one causal MFU formula used everywhere.

FLOPs per token = 6 * N_matmul + 6 * layers * heads * head_dim * seq_len: forward and backward of every matrix product
with a weight (the output head included, embedding look-ups not), and of causal attention, counted once at half of the
square; recomputation is not counted. Where attention stays inside of documents, each one's own square counts. What a
GPU really computes, recomputation included, is :func:`hardware_work`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers import PretrainedConfig

from .spans import Documents

# Dense bf16 tensor-core peak in FLOP/s, from the vendor's data sheets (those print twice as much, with sparsity).
# A name matches when the device's name has all of its words; the first match counts, so the slower variants come first.
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A10": 125e12,
}
PART = "MIG"  # in the name of a slice of a GPU, which reaches a part of the whole one's peak


def matmul_parameters(model: nn.Module) -> int:
    """Weights that multiply every token: those of all linear layers, head included, and of the experts it meets."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) + _expert_parameters(model)


def trained_products(model: nn.Module) -> int:
    """:func:`matmul_parameters`, frozen weights at two thirds: of three products one, their gradient, is not made."""
    frozen = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad)
    return matmul_parameters(model) - frozen // 3


def _expert_parameters(model: nn.Module) -> int:
    """Of experts, whose weights transformers keep as [experts, out, in], those that one token is sent to."""
    configs = (m.config for m in model.modules() if hasattr(m, "config"))
    chosen = next((n for c in configs if (n := getattr(c, "num_experts_per_tok", None))), 0)
    owners = (m for m in model.modules() if type(m).__name__.endswith("Experts"))
    stacks = (p for m in owners for p in m.parameters(recurse=False) if p.dim() == 3)
    return sum(p.numel() // p.shape[0] * min(chosen, p.shape[0]) for p in stacks)


def flops_per_token(
    num_matmul: int, num_layers: int, attention_width: int, seq_len: float, windows: Sequence[int] = ()
) -> float:
    """Training FLOPs per token.

    Args:
        attention_width: query heads * head_dim.
        seq_len: tokens of the sequence; where attention stays inside of documents, :func:`squared_lengths` per token.
        windows: of the layers that have one, or of all with 0 for none, ``local.windows``.
    """
    return 6.0 * num_matmul + 6.0 * attention_width * _seen(num_layers, seq_len, windows)


def _seen(num_layers: int, seq_len: float, windows: Sequence[int]) -> float:
    """Twice the pairs of a query and a key per token, over all layers: `seq_len` for each one without a window.

    A window of w leaves w for a token, and less for the first w: w - w^2 / (2 seq_len). For documents of different
    lengths that is the value at their mean, as :func:`squared_lengths` has it.
    """
    narrow = [w for w in windows if 0 < w < seq_len]
    return (num_layers - len(narrow)) * seq_len + sum(2.0 * w - w * w / seq_len for w in narrow)


def squared_lengths(documents: Documents | None, rows: int, length: int) -> int:
    """The sum of the squared lengths of a batch's documents; None is one document in each of `rows` sequences."""
    if documents is None:
        return rows * length**2
    return sum((end - start) ** 2 for starts in documents for start, end in pairwise((*starts, length)))


@dataclass(frozen=True)
class Work:
    """FLOPs per token that a GPU executes, apart by the kernels that run them (their rates differ)."""

    linear: float
    attention_forward: float
    attention_backward: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention_forward + self.attention_backward


def hardware_work(
    num_matmul: int,
    num_recomputed: int,
    num_layers: int,
    attention_width: int,
    seq_len: int,
    attention_again: bool,
    windows: Sequence[int] = (),
) -> Work:
    """Training FLOPs per token with recomputation; the backward of attention is 2.5 forwards, as it makes QK' again.

    Args:
        num_recomputed: those of the `num_matmul` weights whose products run a second time in backward.
        attention_again: whether attention's forward does too.
        windows: as in :func:`flops_per_token`.
    """
    attention = 2.0 * attention_width * _seen(num_layers, seq_len, windows)  # the causal half of 4 * width * seq_len
    return Work(
        linear=6.0 * num_matmul + 2.0 * num_recomputed,
        attention_forward=attention * (2.0 if attention_again else 1.0),
        attention_backward=2.5 * attention,
    )


def head_dim(config: PretrainedConfig) -> int:
    """Width of one attention head; many configs leave it to hidden_size / heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of the device in FLOP/s, or None when it is not in the table (then MFU is null, not a guess)."""
    if device.type != "cuda":
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    if PART in words:
        return None
    return next((peak for known, peak in PEAK_BF16.items() if words.issuperset(known.split())), None)
