"""llama.cpp at 0c1e57098 (in llama-cpp-python 0.3.36): its conversion script, then what its C++ makes of the GGUF.

``conversion/base.py``: ``rope_parameters`` before ``rope_scaling``; theta, ``type``, share and original length from
the top level where the dict lacks them; no theta means 10,000; max_position_embeddings is the trained length; yarn
without an original length stops the conversion. It loads the config through transformers (4.57.6 by its
requirements), which puts in the architecture's default theta. ``attention_factor`` (or ``attn_factor``) is written,
but ``llama-context.cpp`` computes yarn's magnitude anew: only the rule counts. ``ggml.c`` always rounds the ramp's
ends: ``truncate`` is not read. The betas are read for grok and mistral3 only, elsewhere they are 32 and 1
(``src/models/``; tests/gguf/test_llama_cpp.py has run it). ``conversion/llama.py`` writes llama3's factors and rotates
whole heads. Only Phi-3's conversion writes longrope's factors; elsewhere a longrope file runs as plain RoPE. dynamic is
dropped too. mistral3 writes mscale_all_dim, taking mscale as 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables
from .given import MIXED, Given
from .reading import Layer, Reading, factors, number, reading

NAME = "llama.cpp"
# Conversions that write a share of the head (glm4: conversion/glm.py, half of it where the config names none).
SHARED = ("glm4", "glm4_moe", "gpt_neox", "phi", "phi3", "qwen3_next", "stablelm")

MISTRAL3 = ("mistral3", "ministral3")  # the only ones here whose C++ reads the betas


def read(given: Given) -> Reading:
    """What llama.cpp computes with the GGUF that its own script makes."""
    return reading(NAME, given, _rule)


def _rule(given: Given) -> tuple[dict[str, Layer], int | None, list[str]]:
    notes: list[str] = []
    chosen = given.parameters or given.scaling
    nested = isinstance(chosen.get("full_attention"), Mapping) or isinstance(chosen.get("sliding_attention"), Mapping)
    full = dict(chosen.get("full_attention") or {}) if nested else chosen
    found = {"all": _layer(_filled(full, given), given, notes)}
    local = chosen.get("sliding_attention") if nested else None
    if given.model_type in MIXED and not nested:
        local = {"rope_theta": given.local_theta}
    if local is not None:
        theta = number(local, "rope_theta", 10_000.0)
        table = tables.unscaled(_rotated(full, given), theta)
        found = {"full_attention": found["all"], "sliding_attention": Layer("default", theta, 1.0, None, 1.0, table)}
    return found, given.max_length, notes


def _filled(params: Mapping[str, Any], given: Given) -> dict[str, Any]:
    filled = dict(params)
    filled.setdefault("rope_theta", given.default_theta if given.top_theta is None else given.top_theta)
    filled.setdefault("rope_type", filled.get("type", "default"))
    if given.config.get("original_max_position_embeddings") is not None:
        filled.setdefault("original_max_position_embeddings", given.config["original_max_position_embeddings"])
    return filled


def _rotated(params: Mapping[str, Any], given: Given) -> int:
    share = number(params, "partial_rotary_factor", number({"top": given.top_share}, "top", 1.0))
    return int(given.head_dim * share) if given.model_type in SHARED else given.head_dim


def _layer(params: Mapping[str, Any], given: Given, notes: list[str]) -> Layer:
    kind, theta, dim = str(params["rope_type"]), number(params, "rope_theta"), _rotated(params, given)
    plain = Layer("default", theta, 1.0, None, 1.0, tables.unscaled(dim, theta))
    if kind in ("longrope", "su") or (kind == "yarn" and given.model_type == "phi3"):
        return _longrope(params, given, dim, theta, plain, notes)
    if kind == "linear" and params.get("factor") is not None:
        factor = number(params, "factor")
        return Layer(kind, theta, factor, None, 1.0, tables.linear(dim, theta, factor))
    if kind == "yarn" and params.get("factor") is not None:
        return _yarn(params, given, dim, theta, notes)
    if kind == "llama3":
        factor, original = number(params, "factor", 8.0), number(params, "original_max_position_embeddings", 8192.0)
        low, high = number(params, "low_freq_factor", 1.0), number(params, "high_freq_factor", 4.0)
        return Layer(kind, theta, factor, int(original), 1.0, tables.llama3(dim, theta, factor, original, low, high))
    if kind != "default":
        notes.append(f"drops {kind}: plain RoPE")
    return plain


def _yarn(params: Mapping[str, Any], given: Given, dim: int, theta: float, notes: list[str]) -> Layer:
    factor, original = number(params, "factor"), number(params, "original_max_position_embeddings")
    betas = number(params, "beta_fast", 32.0), number(params, "beta_slow", 1.0)
    if given.model_type not in MISTRAL3 and betas != (32.0, 1.0):
        notes.append("writes beta_fast and beta_slow into the GGUF, where nothing reads them: 32 and 1")
        betas = (32.0, 1.0)
    table = tables.yarn(dim, theta, factor, original, *betas)
    attention = tables.mscale(factor)
    if given.model_type in MISTRAL3:
        attention /= tables.mscale(factor, number(params, "mscale_all_dim", 0.0))
    else:
        named = [key for key in ("attention_factor", "attn_factor", "mscale") if params.get(key) is not None]
        notes += [f"writes {key} into the GGUF, where nothing reads it" for key in named if key != "mscale"]
        notes += ["does not read mscale"] if "mscale" in named else []
    if params.get("truncate") is False:
        notes.append("always rounds the ramp (truncate)")
    return Layer("yarn", theta, factor, int(original), attention, table)


def _longrope(params: Mapping[str, Any], given: Given, dim: int, theta: float, plain: Layer, notes: list[str]) -> Layer:
    if given.model_type != "phi3":
        notes.append("writes longrope's factors for Phi-3 only: plain RoPE here")
        return plain
    original, longest = number(params, "original_max_position_embeddings"), float(given.max_length or 0)
    scale = longest / original
    attention = tables.longrope_magnitude(scale, original)
    attention = tables.mscale(scale) if params["rope_type"] == "yarn" else attention
    if params.get("attention_factor") is not None:
        notes.append("does not read attention_factor of longrope")
    long, short = (factors(params, key, dim // 2) for key in ("long_factor", "short_factor"))
    before = tables.longrope(dim, theta, short) if short != long else None
    table = tables.longrope(dim, theta, long if longest > original else short)
    return Layer("longrope", theta, scale, int(original), attention, table, before)
