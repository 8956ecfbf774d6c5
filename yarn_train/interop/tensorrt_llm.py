"""TensorRT-LLM, PyTorch path: ``attention_backend/interface.py`` (2026, RopeParams.from_config) and
``RopeEmbeddingUtils``.

Scaling from ``rope_scaling`` alone; ``type`` wins over ``rope_type``. theta: ``rope_parameters`` are copied over the
top level, so theirs wins; else the top level; else 10,000. A missing original length is 1024. ``mscale`` (1) and
``mscale_all_dim`` (0) always make a ratio, each alone too; ``attention_factor`` and ``truncate`` are not read.
longrope's magnitude is its rule from the two lengths. dynamic takes ``alpha``, not ``factor``.

Not verified: which transformers it runs with. Under transformers 4 (assumed) ``rope_parameters`` bring no scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables
from .given import MIXED, Given
from .reading import Layer, Reading, Refused, factors, number, reading

NAME = "TensorRT-LLM"
DEFAULT_ORIGINAL = 1024.0


def read(given: Given) -> Reading:
    """What TensorRT-LLM computes, for layers of full attention."""
    return reading(NAME, given, _rule)


def _rule(given: Given) -> tuple[dict[str, Layer], int | None, list[str]]:
    notes: list[str] = []
    flat = given.parameters
    nested = next((v for v in (flat.get("full_attention"), *flat.values()) if isinstance(v, Mapping)), None)
    mixed = nested is not None or given.model_type in MIXED
    if mixed:
        flat = flat if nested is None else dict(nested)
        notes.append("layers of full attention only; what it does in the others is not verified")
    theta = number({"rope_theta": flat.get("rope_theta", given.top_theta)}, "rope_theta", given.default_theta)
    share = number({"share": flat.get("partial_rotary_factor", given.top_share)}, "share", 1.0)
    dim = int(given.head_dim * share)
    if flat and not given.scaling and ({"factor", "long_factor"} & set(flat)):
        notes.append("takes no scaling from rope_parameters (not verified under transformers 5)")
    layer = _layer(given.scaling, given, flat, dim, theta, notes)
    return {"full_attention" if mixed else "all": layer}, given.max_length, notes


def _layer(
    params: Mapping[str, Any], given: Given, flat: Mapping[str, Any], dim: int, theta: float, notes: list[str]
) -> Layer:
    if not params:
        return Layer("default", theta, 1.0, None, 1.0, tables.unscaled(dim, theta))
    kind, factor = params.get("type") or params.get("rope_type"), number(params, "factor", 1.0)
    tops = (flat.get("original_max_position_embeddings"), given.config.get("original_max_position_embeddings"))
    top = next((value for value in tops if value), None)
    original = number(
        {**params, **({"original_max_position_embeddings": top} if top else {})}, _ORIGINAL, DEFAULT_ORIGINAL
    )
    if kind == "yarn":
        return _yarn(params, dim, theta, factor, original, notes)
    if kind == "longrope":
        return _longrope(params, given, dim, theta, original, notes)
    if kind == "llama3":
        low, high = number(params, "low_freq_factor", 1.0), number(params, "high_freq_factor", 4.0)
        return Layer(kind, theta, factor, int(original), 1.0, tables.llama3(dim, theta, factor, original, low, high))
    if kind == "dynamic":
        base = theta * number(params, "alpha", 1.0) ** (dim / (dim - 2))
        notes.append("dynamic takes alpha, not factor")
        return Layer(kind, theta, factor, None, 1.0, tables.unscaled(dim, base))
    if kind == "linear":
        return Layer(kind, theta, factor, None, 1.0, tables.linear(dim, theta, factor))
    if kind in ("default", "none"):
        return Layer("default", theta, 1.0, None, 1.0, tables.unscaled(dim, theta))
    raise Refused(f"rope type {kind!r} is unknown")


_ORIGINAL = "original_max_position_embeddings"


def _yarn(params: Mapping[str, Any], dim: int, theta: float, factor: float, original: float, notes: list[str]) -> Layer:
    fast, slow = number(params, "beta_fast", 32.0), number(params, "beta_slow", 1.0)
    over, under = number(params, "mscale", 1.0), number(params, "mscale_all_dim", 0.0)
    if params.get("attention_factor") is not None or params.get("attn_factor") is not None:
        notes.append("does not read attention_factor or attn_factor")
    if params.get("truncate") is False:
        notes.append("always rounds the ramp (truncate)")
    attention = tables.mscale(factor, over) / tables.mscale(factor, under)
    return Layer("yarn", theta, factor, int(original), attention, tables.yarn(dim, theta, factor, original, fast, slow))


def _longrope(
    params: Mapping[str, Any], given: Given, dim: int, theta: float, original: float, notes: list[str]
) -> Layer:
    if params.get("attention_factor") is not None:
        notes.append("does not read attention_factor of longrope")
    longest = float(given.max_length or original)
    long = factors(params, "long_factor", dim // 2)
    attention = tables.longrope_magnitude(longest / original, original)
    return Layer("longrope", theta, longest / original, int(original), attention, tables.longrope(dim, theta, long))
