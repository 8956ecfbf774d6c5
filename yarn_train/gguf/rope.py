"""What RoPE keys and factors make llama.cpp compute exactly the table of a model; else the reason why none do.

llama.cpp has its own arithmetic (``ggml.c``, ``ops.cpp``, ``llama-context.cpp`` of llama-cpp-python 0.3.36): the ramp
always goes from 32 to 1 turns (only grok and mistral3 read ``yarn_beta_fast`` and ``yarn_beta_slow``) with its ends
rounded, and with type yarn cos and sin are multiplied by 0.1 ln s + 1 whatever the file says. The key
``rope.scaling.attn_factor`` multiplies on top of that with every type, so it carries the ratio; ``yarn_attn_factor`` is
overwritten when the context is made. ``rope_freqs.weight``, one divisor per pair, is read by the llama architecture
alone. So nothing is trusted: what the keys would give is computed as llama.cpp does and compared with the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rope.base import rope_type
from .package import GGUFError

# Relative. llama.cpp multiplies theta up from pair to pair in float32, which adds up to 4e-6 over the 128 pairs of a
# head of 256; the nearest wrong table, ends of the ramp not rounded, is 5e-2 away.
TOLERANCE = 2e-5
BETA_FAST, BETA_SLOW = 32.0, 1.0  # whatever the file says, in the architectures that are written here
PER_PAIR = frozenset({"llama"})  # architectures whose graph reads rope_freqs.weight
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RopeKeys:
    """What a GGUF says about RoPE.

    Attributes:
        theta: rope.freq_base.
        kind: rope.scaling.type: "none", "linear" or "yarn".
        factor, original_length: as YaRN has them; the length is only written with yarn.
        attn_factor: multiplies cos and sin on top of what the type does by itself.
        divisors: rope_freqs.weight, [rotary_dim/2], or None.
    """

    theta: float
    kind: str = "none"
    factor: float = 1.0
    original_length: int = 0
    attn_factor: float = 1.0
    divisors: Floats | None = field(default=None, compare=False)


def keys_for(params: Mapping[str, Any], arch: str, inv_freq: Floats, attention: float) -> RopeKeys:
    """Keys with which llama.cpp computes `inv_freq` ([rotary_dim/2]) and multiplies cos and sin by `attention`.

    Raises:
        GGUFError: none do in this architecture, or the table depends on the length of the text.
    """
    kind, theta = rope_type(params), float(params["rope_theta"])
    if kind == "dynamic" or (kind == "longrope" and params.get("short_factor") != params.get("long_factor")):
        raise GGUFError(f"rope: {kind} here changes with the length of the text; llama.cpp's table does not")
    own = _own(kind, params, theta, attention)
    for keys in (own, _other_base(inv_freq, attention)):
        if keys is not None and agrees(keys, inv_freq, attention):
            return keys
    if arch in PER_PAIR:
        plain = computed(RopeKeys(theta), len(inv_freq))[0]
        divisors = (plain.astype(np.float64) / inv_freq).astype(np.float32)
        each = RopeKeys(theta, attn_factor=attention, divisors=divisors)
        if agrees(each, inv_freq, attention):
            return each
    raise GGUFError(
        f"rope: no keys of llama.cpp's {arch} give the frequencies of this {kind} config (its ramp goes from 32 to 1 "
        "turns with rounded ends, and factors per pair are for llama only); "
        "fix: train with rope.beta=32 rope.alpha=1 rope.ramp=by_index rope.truncate=true"
    )


def computed(keys: RopeKeys, pairs: int) -> tuple[Floats, float]:
    """Frequencies [pairs] and what multiplies cos and sin, as llama.cpp computes them from the keys, in float32."""
    dim, one = 2 * pairs, np.float32(1)
    step = np.float32(keys.theta) ** np.float32(-2.0 / dim)
    plain = np.cumprod(np.array([one, *[step] * (pairs - 1)], dtype=np.float32), dtype=np.float32)
    if keys.divisors is not None:
        plain = plain / keys.divisors
    if keys.kind == "none":
        return plain, keys.attn_factor
    inside = plain * np.float32(1 / keys.factor)
    if keys.kind == "linear":
        return inside, keys.attn_factor
    low, high = (_end(dim, keys, beta) for beta in (BETA_FAST, BETA_SLOW))
    low, high = max(0.0, math.floor(low)), min(dim - 1.0, math.ceil(high))
    ramp = (np.arange(pairs, dtype=np.float32) - np.float32(low)) / np.float32(max(0.001, high - low))
    mix = (one - np.clip(ramp, 0, 1)).astype(np.float32)
    return inside * (one - mix) + plain * mix, keys.attn_factor * _magnitude(keys.factor)


def agrees(keys: RopeKeys, inv_freq: Floats, attention: float) -> bool:
    """Whether llama.cpp computes this table from the keys."""
    frequencies, magnitude = computed(keys, len(inv_freq))
    close = np.allclose(frequencies, inv_freq, rtol=TOLERANCE, atol=0.0)
    return close and math.isclose(magnitude, attention, rel_tol=TOLERANCE)


def _own(kind: str, params: Mapping[str, Any], theta: float, attention: float) -> RopeKeys | None:
    """The keys of the same name as the config's type."""
    factor = float(params.get("factor") or 1.0)
    if kind == "default":
        return RopeKeys(theta, attn_factor=attention)
    if kind == "linear":
        return RopeKeys(theta, "linear", factor, attn_factor=attention)
    if kind != "yarn" or not params.get("original_max_position_embeddings"):
        return None
    length = int(params["original_max_position_embeddings"])
    return RopeKeys(theta, "yarn", factor, length, attn_factor=attention / _magnitude(factor))


def _other_base(inv_freq: Floats, attention: float) -> RopeKeys | None:
    """Plain RoPE of the theta that the last pair says: NTK is nothing else."""
    pairs = len(inv_freq)
    if pairs < 2:
        return None
    return RopeKeys(float(inv_freq[-1]) ** (-pairs / (pairs - 1)), attn_factor=attention)


def _magnitude(factor: float) -> float:
    """By what llama.cpp's yarn multiplies cos and sin without being asked."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _end(dim: int, keys: RopeKeys, beta: float) -> float:
    """Pair index at which a pair turns `beta` times within the original length; float32 as there."""
    turns = np.float32(keys.original_length) / (np.float32(beta) * np.float32(2) * np.float32(math.pi))
    return float(np.float32(dim) * np.log(turns) / (np.float32(2) * np.log(np.float32(keys.theta))))
