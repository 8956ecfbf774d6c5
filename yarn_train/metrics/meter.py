"""Throughput, MFU and memory from plain numbers; knows no model."""

from __future__ import annotations

import math
import resource
import sys

import torch


def finite_or_none(value: float | None) -> float | None:
    """The value for a row: JSON has neither infinity nor NaN."""
    return value if value is not None and math.isfinite(value) else None


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops: float | None, devices: int) -> float | None:
    """Model FLOPs utilisation in [0, 1] of all devices together; None when the device's peak is not known."""
    if peak_flops is None:
        return None
    return tokens_per_second * flops_per_token / (peak_flops * devices)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: allocated on the GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
