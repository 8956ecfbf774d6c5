"""What a GPU holds and how fast its kernels are known to run: the planner's table of measured ceilings.

Rates are for bfloat16, long sequences and head_dim 128, in FLOP/s. Attention counts the causal half of the square, its
backward 2.5 forwards. Sources; "est." marks what nobody was found to have published, scaled by the data sheets:

| GPU | linear | attention (FlashAttention-2, the kernel of model.attention=sdpa too) forward / backward |
|---|---|---|
| H100, H200 | 600e12 est., 61 % of peak | 335-370 / 322-337: flash-attention's benchmark charts (flash3_fp16_fwd, 16k
  tokens), arXiv 2407.08608, and its issue 1051 at 32k |
| A100 | 245e12 est., 79 % of peak | 205 / 195: flash-attention's flash2_a100_fwd_bwd chart has 189 for both at 16k |
| B200 | 1350e12 est. | 600 / 560 est.; FlashAttention-4 (arXiv 2603.05451) reaches 1605, not used here |

Memory, peak, HBM and link are the vendor's data sheets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..model.flops import PEAK_BF16

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """One GPU and its surroundings.

    Attributes:
        name: for people.
        memory: bytes that torch reports as the device's total.
        peak: dense bf16 FLOP/s of the data sheet.
        linear: FLOP/s that large bf16 matrix products reach.
        attention_forward, attention_backward: FLOP/s of the attention kernel.
        hbm: bytes/s of device memory.
        link: bytes/s each way between GPUs of a node.
        network: bytes/s each way and GPU between nodes; one 400 (A100: 200) Gbit/s adapter per GPU is assumed.
        host_link: bytes/s each way to host memory that pinned copies reach, est. for PCIe 5 (A100: 4) x16.
    """

    name: str
    memory: float
    peak: float
    linear: float
    attention_forward: float
    attention_backward: float
    hbm: float
    link: float
    network: float
    host_link: float


H100 = Machine(
    "H100 SXM 80 GB",
    memory=79.1 * GIB,
    peak=PEAK_BF16["H100"],
    linear=600e12,
    attention_forward=350e12,
    attention_backward=330e12,
    hbm=3.35e12,
    link=450e9,
    network=50e9,
    host_link=50e9,
)
A100 = Machine(
    "A100 SXM 80 GB",
    memory=79.1 * GIB,
    peak=PEAK_BF16["A100"],
    linear=245e12,
    attention_forward=205e12,
    attention_backward=195e12,
    hbm=2.04e12,
    link=300e9,
    network=25e9,
    host_link=24e9,
)
B200 = Machine(
    "B200 SXM 180 GB",
    memory=178.3 * GIB,
    peak=PEAK_BF16["B200"],
    linear=1350e12,
    attention_forward=600e12,
    attention_backward=560e12,
    hbm=7.7e12,
    link=900e9,
    network=50e9,
    host_link=50e9,
)
MACHINES = {
    "h100": H100,
    "h200": dataclasses.replace(H100, name="H200 SXM 141 GB", memory=139.8 * GIB, hbm=4.8e12),
    "a100-80": A100,
    "a100-40": dataclasses.replace(A100, name="A100 SXM 40 GB", memory=39.4 * GIB, hbm=1.56e12),
    "b200": B200,
}

SLOWER = {"PCIe", "NVL", "GH200"}  # boards of the same chips whose rates are others


def named(device: str) -> Machine | None:
    """The machine of a GPU by the name that its driver gives it; None where its rates are not known."""
    words = set(device.replace("-", " ").split())
    for key, machine in MACHINES.items():
        chip, _, memory = key.upper().partition("-")
        if chip in words and not words & SLOWER and (not memory or f"{memory}GB" in words):
            return machine
    return None


# Memory that no tensor of ours explains, est. CUDA: context, kernels and cuBLAS workspaces. NCCL: channels and buffers
# of a run's groups. Reserve: the share of the memory that the caching allocator may lose to fragments.
CUDA_BYTES = 1.0 * GIB
NCCL_BYTES = 2.0 * GIB
RESERVE = 0.03


def fixed_bytes(world_size: int) -> float:
    """Bytes on the device before the first tensor exists."""
    return CUDA_BYTES + (NCCL_BYTES if world_size > 1 else 0.0)


def usable_bytes(memory: float) -> float:
    """Bytes of a device's `memory` that tensors and the fixed part may fill."""
    return memory * (1.0 - RESERVE)
