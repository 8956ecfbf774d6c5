"""Model FLOPs and peak rates, for one causal MFU formula used everywhere.

FLOPs per token = 6 * N_matmul + 6 * layers * heads * head_dim * seq_len: forward and backward of every matrix product
with a weight (the output head included, embedding look-ups not), and of causal attention, counted once at half of the
square; recomputation is not counted.
"""

from __future__ import annotations

import torch
from torch import nn

# Dense bf16 tensor-core peak in FLOP/s, from the vendor's data sheets (without sparsity).
# A name matches when the device's name has all of its words; the first match counts, so the slower variants come first.
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
}


def matmul_parameters(model: nn.Module) -> int:
    """Weights that take part in a matrix product with every token: those of all linear layers, head included."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def flops_per_token(num_matmul: int, num_layers: int, attention_width: int, seq_len: int) -> float:
    """Training FLOPs per token; `attention_width` is query heads * head_dim."""
    return 6.0 * num_matmul + 6.0 * num_layers * attention_width * seq_len


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of the device in FLOP/s, or None when it is not in the table (then MFU is null, not a guess)."""
    if device.type != "cuda":
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    return next((peak for known, peak in PEAK_BF16.items() if words.issuperset(known.split())), None)
