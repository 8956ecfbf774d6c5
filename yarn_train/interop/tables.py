"""Frequencies of every rope type from numbers already chosen; the readers differ in the numbers, hardly in this.

The order of the float32 operations is that of transformers' ``modeling_rope_utils.py``: equal to it bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..rope.frequencies import base_frequencies, by_index_frequencies, pi_frequencies


def unscaled(dim: int, theta: float) -> Tensor:
    """Plain RoPE, [dim/2] float32."""
    return base_frequencies(dim, theta)


def linear(dim: int, theta: float, factor: float) -> Tensor:
    """Every frequency divided by `factor`, [dim/2] float32."""
    return pi_frequencies(dim, theta, factor)


def dynamic(dim: int, theta: float, factor: float, length: float, max_length: float) -> Tensor:
    """NTK at a sequence of `length` tokens, where `max_length` is the one up to which nothing is scaled."""
    base = theta * ((factor * length / max_length) - (factor - 1)) ** (dim / (dim - 2))
    return base_frequencies(dim, base)


def yarn(
    dim: int, theta: float, factor: float, original: float, fast: float = 32.0, slow: float = 1.0, truncate: bool = True
) -> Tensor:
    """YaRN's ramp by pair index, [dim/2] float32."""
    return by_index_frequencies(dim, theta, original, factor, slow, fast, truncate)  # type: ignore[arg-type]


def llama3(dim: int, theta: float, factor: float, original: float, low: float, high: float) -> Tensor:
    """Llama 3.1: kept above `high` rotations in the original length, divided below `low`, blended between."""
    kept = base_frequencies(dim, theta)
    wavelength = 2 * math.pi / kept
    scaled = torch.where(wavelength > original / low, kept / factor, kept)
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    between = ~(wavelength < original / high) * ~(wavelength > original / low)
    return torch.where(between, blended, scaled)


def longrope(dim: int, theta: float, divisors: Sequence[float]) -> Tensor:
    """One divisor per pair, [dim/2] float32."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (torch.tensor(divisors, dtype=torch.float32) * theta**exponents)


def mscale(factor: float, weight: float = 1.0) -> float:
    """0.1 w ln s + 1, and 1 where nothing is extended: the magnitude rule of YaRN (paper, Eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def longrope_magnitude(scale: float, original: float) -> float:
    """LongRoPE's rule, sqrt(1 + ln s / ln L), from the ratio of the two lengths."""
    return 1.0 if scale <= 1.0 else math.sqrt(1 + math.log(scale) / math.log(original))
