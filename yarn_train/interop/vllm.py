"""vLLM, which loads the config through transformers 5: its own part is the rotary classes and the longest length.

Now: ``yarn_scaling_rope.py`` at 0cd57847 (2026-09, pull request 56446): attention_factor final, both mscales as a
ratio, truncate; ``attn_factor`` is no argument of it any more. Before: ``rotary_embedding/__init__.py`` at 926c71f6:
a whitelist that lets ``attn_factor`` through, as a multiplier of the rule, and drops attention_factor and both
mscales. Both: ``phi3_long_rope_scaled_rope.py`` at 17d618b0: longrope's magnitude is ``long_mscale``, else its rule
from the two lengths; ``factor`` and ``attention_factor`` are not read. dynamic is static: at max_position_embeddings
times the factor.

Not verified: the longest length (``_get_and_verify_max_len`` was not at hand whole). From the text of 56446: yarn
gave original length times factor before and gives max_position_embeddings now; linear and dynamic multiply by the
factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables, transformers5
from .given import Given
from .reading import Layer, Reading, Refused, number, reading

NOW = "vLLM now"
BEFORE = "vLLM before 2026-09"
UNVERIFIED = "longest length not verified"


def read(given: Given) -> Reading:
    """What vLLM since September 2026 computes."""
    return reading(NOW, given, lambda given: _rule(given, now=True))


def read_before(given: Given) -> Reading:
    """What vLLM computed until September 2026."""
    return reading(BEFORE, given, lambda given: _rule(given, now=False))


def _rule(given: Given, now: bool) -> tuple[dict[str, Layer], int | None, list[str]]:
    notes: list[str] = []
    found = {}
    for name, params in transformers5.standard(given).items():
        found[name] = _layer(_renamed(params), given, now, notes)
    length = _longest(given, found, now)
    if length != given.max_length:
        notes.append(f"multiplies the length by the factor; {UNVERIFIED}")
    return found, length, notes


def _renamed(params: Mapping[str, Any]) -> dict[str, Any]:
    kind, old = params["rope_type"], params.get("type")
    if old is not None and old != kind and (old, kind) != ("su", "longrope"):
        raise Refused(f"rope_type {kind!r} and type {old!r} contradict each other")
    return {**params, "rope_type": "longrope" if kind == "su" else kind}


def _layer(params: Mapping[str, Any], given: Given, now: bool, notes: list[str]) -> Layer:
    layer = transformers5.layer(params, given)
    if layer.kind == "yarn" and not now:
        notes += _dropped(params, ("attention_factor", "mscale", "mscale_all_dim"))
        attention = tables.mscale(layer.factor) * number(params, "attn_factor", 1.0)
        return Layer(**{**vars(layer), "attention_factor": attention})
    if layer.kind == "yarn":
        notes += _dropped(params, ("attn_factor",))
    if layer.kind == "longrope":
        return longrope(layer, params, given, notes)
    if layer.kind == "dynamic":
        notes.append("dynamic is fixed at the longest length")
        return fixed(layer, given)
    return layer


def fixed(layer: Layer, given: Given) -> Layer:
    """dynamic as vLLM and SGLang have it: one table, of max_position_embeddings times the factor."""
    longest = float(given.max_length or 0)
    table = tables.dynamic(2 * len(layer.inv_freq), layer.theta, layer.factor, longest * layer.factor, longest)
    return Layer(**{**vars(layer), "inv_freq": table})


def longrope(layer: Layer, params: Mapping[str, Any], given: Given, notes: list[str]) -> Layer:
    """longrope as vLLM and SGLang read it: ``long_mscale`` or the rule from the lengths, never attention_factor."""
    original = float(layer.original_length or 1)
    rule = tables.longrope_magnitude(float(given.max_length or original) / original, original)
    if params.get("long_mscale") is None and params.get("attention_factor") is not None:
        notes.append("does not read attention_factor of longrope, only long_mscale")
    return Layer(**{**vars(layer), "attention_factor": number(params, "long_mscale", rule)})


def _dropped(params: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    named = [key for key in keys if params.get(key) is not None]
    return [f"does not read {', '.join(named)}"] if named else []


def _longest(given: Given, found: Mapping[str, Layer], now: bool) -> int | None:
    if given.max_length is None:
        return None
    length = float(given.max_length)
    for layer in found.values():
        if layer.kind == "yarn" and not now and layer.original_length:
            length = layer.original_length * layer.factor
        elif layer.kind in ("linear", "dynamic"):
            length = given.max_length * layer.factor
    return int(length)
