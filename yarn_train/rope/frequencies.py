"""Rotary frequencies of every method, as pure functions of numbers: no model, no configuration, no device.

Notation of the YaRN paper (Peng et al., arXiv:2309.00071): d is the number of rotated dimensions of a head, b the base
(``theta``), L the ORIGINAL context length in tokens, s the ``factor`` by which it is extended. Pair i of d/2 turns by
``inv_freq[i] = b^(-2i/d)`` radians per token, so it makes ``r_i = L * inv_freq[i] / (2 pi)`` rotations in L tokens.

Tables are float32 and always computed on the CPU: another device may round ``pow`` differently, and a table must be
the same on every rank. The order of the float32 operations of ``pi`` and of ``yarn`` by index is that of
transformers' ``modeling_rope_utils.py``, which makes them equal to it bit for bit; do not simplify the algebra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("none", "pi", "ntk", "ntk_by_parts", "yarn")
RAMPS = ("by_index", "by_rotations")


@dataclass(frozen=True, eq=False)
class RopeTable:
    """What a rotary module needs.

    Attributes:
        inv_freq: [d/2] float32, radians per token, fastest pair first.
        attention_factor: multiplies BOTH cos and sin, so attention logits grow by its square; sqrt(1/t) in the paper.
    """

    inv_freq: Tensor
    attention_factor: float


def rope_table(
    method: str,
    *,
    dim: int,
    theta: float,
    original_length: int,
    factor: float,
    alpha: float = 1.0,
    beta: float = 32.0,
    temperature: float | str = "auto",
    ramp: str = "by_index",
    truncate: bool = True,
) -> RopeTable:
    """The table of one method; arguments that a method has no use for are ignored.

    Args:
        method: none, pi, ntk, ntk_by_parts or yarn.
        dim: d, rotated dimensions per head; even.
        theta: b, the base; above 1.
        original_length: L in tokens, the length the model was pretrained at (never an extended one).
        factor: s >= 1, absolute: extended length / L.
        alpha: pairs with fewer rotations than this in L are divided by s.
        beta: pairs with more rotations than this in L keep their frequency; above alpha.
        temperature: t, which divides the attention logits; "auto" is the paper's rule for yarn and 1 for the others.
        ramp: by_index (reference code, every server) or by_rotations (paper, Eq. 18) between alpha and beta.
        truncate: by_index only; round the ends of the ramp outwards to whole pairs.

    Raises:
        ValueError: an argument outside these ranges.
    """
    _check(method, dim, theta, original_length, factor, alpha, beta, ramp)
    if method == "none":
        inv_freq = base_frequencies(dim, theta)
    elif method == "pi":
        inv_freq = pi_frequencies(dim, theta, factor)
    elif method == "ntk":
        inv_freq = ntk_frequencies(dim, theta, factor)
    elif ramp == "by_index":
        inv_freq = by_index_frequencies(dim, theta, original_length, factor, alpha, beta, truncate)
    else:
        inv_freq = by_rotations_frequencies(dim, theta, original_length, factor, alpha, beta)
    return RopeTable(inv_freq, attention_factor(method, factor, temperature))


def attention_factor(method: str, factor: float, temperature: float | str = "auto") -> float:
    """sqrt(1/t), which multiplies cos and sin; "auto" is 0.1 ln s + 1 for yarn (paper, Eq. 22) and 1 for the others.

    Raises:
        ValueError: a temperature that is neither "auto" nor a number above 0.
    """
    if temperature == "auto":
        return 0.1 * math.log(factor) + 1.0 if method == "yarn" and factor > 1 else 1.0
    if isinstance(temperature, str) or not temperature > 0:
        raise ValueError(f"temperature must be 'auto' or a number above 0, got {temperature!r}")
    return math.sqrt(1.0 / temperature)


def dynamic_factor(length: int, original_length: int) -> float:
    """Dynamic scaling: s = max(1, l'/L) for a sequence of l' tokens so far (paper, section 3.3).

    Any method takes it as its `factor`; yarn's temperature then follows it too.

    transformers' rope type ``dynamic`` is ntk with ``s = f l'/L - (f - 1)``, f being its ``factor``: equal to this
    where f = 1. It differs in two more ways. Once it has seen a longer sequence it keeps that one's scale for every
    later one that is not shorter than L. And it rotates keys before they are cached, each at the scale of its own time.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1 or original_length < 1:
        raise ValueError(f"lengths must be at least 1, got {length} and {original_length}")
    return max(1.0, length / original_length)


def base_frequencies(dim: int, theta: float) -> Tensor:
    """Unscaled RoPE, b^(-2i/d): [d/2] float32 radians per token (RoFormer, Su et al., section 3.2.2)."""
    return 1.0 / _periods(dim, theta)


def pi_frequencies(dim: int, theta: float, factor: float) -> Tensor:
    """Position interpolation: every frequency divided by s, [d/2] float32 (Chen et al.; YaRN paper, Eq. 10)."""
    return base_frequencies(dim, theta) / factor


def ntk_frequencies(dim: int, theta: float, factor: float) -> Tensor:
    """NTK-aware: b' = b * s^(d/(d-2)), so the slowest pair is divided by s and the fastest kept (paper, Eq. 16).

    Raises:
        ValueError: for d = 2, where the only pair is both the fastest and the slowest.
    """
    if dim <= 2:
        raise ValueError(f"ntk needs at least 4 rotated dimensions, got {dim}")
    return base_frequencies(dim, theta * factor ** (dim / (dim - 2)))


def by_index_frequencies(
    dim: int, theta: float, original_length: int, factor: float, alpha: float, beta: float, truncate: bool
) -> Tensor:
    """NTK-by-parts of the reference code and every server: the ramp is linear in the pair INDEX. [d/2] float32."""
    periods = _periods(dim, theta)
    kept = 1.0 / periods
    interpolated = 1.0 / (factor * periods)
    low, high = correction_range(dim, theta, original_length, alpha, beta, truncate)
    if low == high:
        high += 0.001  # the reference's guard against dividing by zero
    indices = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    keep = 1 - torch.clamp((indices - low) / (high - low), 0, 1)
    return interpolated * (1 - keep) + kept * keep


def by_rotations_frequencies(
    dim: int, theta: float, original_length: int, factor: float, alpha: float, beta: float
) -> Tensor:
    """NTK-by-parts as the paper writes it: the ramp is linear in the ROTATIONS r (Eq. 17-20). [d/2] float32.

    The ramp is computed in float64 because r - alpha cancels; pairs above beta still equal unscaled RoPE bit for bit.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
    turns = rotations(theta**-exponents, original_length)
    gamma = torch.clamp((turns - alpha) / (beta - alpha), 0, 1)
    return (base_frequencies(dim, theta).double() * ((1 - gamma) / factor + gamma)).float()


def correction_range(
    dim: int, theta: float, original_length: int, alpha: float, beta: float, truncate: bool = True
) -> tuple[float, float]:
    """Ends of the by_index ramp: up to the first index frequencies are kept, from the second on divided by s.

    Llama-2 (128, 1e4, 4096, 1, 32) gives 20 and 46. The upper end is clamped to d - 1 rather than to the last pair,
    d/2 - 1, as the reference and transformers do: it only sets the slope, and weights were trained with that slope.
    """
    low = _pair_with(beta, dim, theta, original_length)
    high = _pair_with(alpha, dim, theta, original_length)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, dim - 1)


def rotations(inv_freq: Tensor, original_length: int) -> Tensor:
    """r = L / wavelength = L * inv_freq / (2 pi): full turns of each pair in L tokens (paper, Eq. 17); shape kept."""
    return original_length * inv_freq / (2 * math.pi)


def _periods(dim: int, theta: float) -> Tensor:
    """b^(2i/d), [d/2] float32: tokens per radian."""
    return theta ** (torch.arange(0, dim, 2, device="cpu").to(torch.float32) / dim)


def _pair_with(turns: float, dim: int, theta: float, original_length: int) -> float:
    """The fractional pair index at which a pair makes this many turns in L tokens (``find_correction_dim``)."""
    return (dim * math.log(original_length / (turns * 2 * math.pi))) / (2 * math.log(theta))


def _check(
    method: str, dim: int, theta: float, original_length: int, factor: float, alpha: float, beta: float, ramp: str
) -> None:
    rules = {
        f"method must be one of {', '.join(METHODS)}, got {method!r}": method in METHODS,
        f"ramp must be one of {', '.join(RAMPS)}, got {ramp!r}": ramp in RAMPS,
        f"dim must be even and at least 2, got {dim}": dim >= 2 and dim % 2 == 0,
        f"theta must be above 1, got {theta}": theta > 1,
        f"original_length must be at least 1, got {original_length}": original_length >= 1,
        f"factor must be at least 1, got {factor}": factor >= 1,
        f"alpha and beta must satisfy 0 < alpha < beta, got {alpha} and {beta}": 0 < alpha < beta,
    }
    broken = [message for message, holds in rules.items() if not holds]
    if broken:
        raise ValueError("; ".join(broken))
