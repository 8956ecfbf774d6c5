"""SGLang, which loads the config through transformers 5: its own part is the rotary classes and the longest length.

``rotary_embedding/factory.py`` at 108c36c0 and ``yarn.py`` at 0b1fd02d (2026): both mscales as a ratio if both are
there, else the rule; ``attn_factor`` MULTIPLIES that; ``attention_factor`` is not read. A model's own code may copy
HF's final factor into ``attn_factor``, which squares it: Laguna's did until pull request 33558. Before ``yarn.py`` at
0b1fd02d the mscales were ignored. ``get_context_length`` multiplies max_position_embeddings by the factor unless the
dict names an original length or is llama3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables, transformers5, vllm
from .given import Given
from .reading import Layer, Reading, number, reading

NAME = "SGLang"


def read(given: Given) -> Reading:
    """What SGLang computes."""
    return reading(NAME, given, _rule)


def _rule(given: Given) -> tuple[dict[str, Layer], int | None, list[str]]:
    notes: list[str] = []
    found = {name: _layer(params, given, notes) for name, params in transformers5.standard(given).items()}
    length = _longest(given, found.get("full_attention", next(iter(found.values()))))
    if length != given.max_length:
        notes.append("multiplies the length by the factor")
    return found, length, notes


def _layer(params: Mapping[str, Any], given: Given, notes: list[str]) -> Layer:
    layer = transformers5.layer(params, given)
    if layer.kind == "yarn":
        if params.get("attention_factor") is not None:
            notes.append("does not read attention_factor")
        if params.get("attn_factor") is not None:
            notes.append("multiplies its rule by attn_factor")
        return Layer(**{**vars(layer), "attention_factor": _magnitude(params, layer.factor)})
    if layer.kind == "longrope":
        return vllm.longrope(layer, params, given, notes)
    if layer.kind == "dynamic":
        notes.append("dynamic is fixed at the longest length (not verified)")
        return vllm.fixed(layer, given)
    return layer


def _magnitude(params: Mapping[str, Any], factor: float) -> float:
    rule = tables.mscale(factor)
    if params.get("mscale") is not None and params.get("mscale_all_dim") is not None:
        over, under = number(params, "mscale"), number(params, "mscale_all_dim")
        rule = tables.mscale(factor, over) / tables.mscale(factor, under)
    return rule * number(params, "attn_factor", 1.0)


def _longest(given: Given, layer: Layer) -> int | None:
    if given.max_length is None:
        return None
    again = layer.factor if layer.original_length is None else 1.0
    return int(given.max_length * again)
