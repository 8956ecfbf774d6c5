"""transformers 5: ``modeling_rope_utils.py`` and ``configuration_utils.py`` of 5.23.0.

``rope_scaling`` that is not empty REPLACES ``rope_parameters``; of Gemma 3 and OLMo 3 it UPDATES the dict of full
attention. theta and the rotated share are taken from that dict,
then from the top level, then the architecture's default. ``rope_type`` wins over ``type``. A missing original length
becomes max_position_embeddings, and one at the top level overrides the dict's. ``attention_factor`` is final; else
both of ``mscale`` and ``mscale_all_dim`` as a ratio; else the rule. ``attn_factor`` and unknown keys are only warned
of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables
from .given import MIXED, Given
from .reading import Layer, Reading, Refused, factors, number, reading

NAME = "transformers 5"
FULL, LOCAL = "full_attention", "sliding_attention"
WITH_ORIGINAL = ("llama3", "yarn", "longrope")


def read(given: Given) -> Reading:
    """What transformers 5 computes."""
    return reading(NAME, given, lambda given: (layers(given), given.max_length, []))


def layers(given: Given) -> dict[str, Layer]:
    """By kind of layer.

    Raises:
        Refused: as transformers would.
    """
    return {name: layer(params, given) for name, params in standard(given).items()}


def standard(given: Given) -> dict[str, dict[str, Any]]:
    """The rope dict of each kind of layer after transformers has filled in what is missing."""
    if given.model_type in MIXED:
        return {name: _filled(params, given) for name, params in _mixed(given).items()}
    chosen = given.scaling or given.parameters
    nested = {name: dict(params) for name, params in chosen.items() if isinstance(params, Mapping)}
    if nested:
        return {name: _filled(params, given) for name, params in nested.items()}
    return {"all": _filled(chosen, given)}


def _mixed(given: Given) -> dict[str, dict[str, Any]]:
    """rope_scaling is put into the dict of full attention, key by key; the local layers keep theirs."""
    plain, found = {"rope_type": "default"}, {}
    for name in (FULL, LOCAL):
        stated = given.parameters.get(name)
        found[name] = dict(stated) if isinstance(stated, Mapping) else dict(plain)
    found[FULL] |= {key: value for key, value in given.scaling.items() if not isinstance(value, Mapping)}
    if given.model_type == "olmo3" and "rope_theta" not in found[FULL]:
        # the top level's is taken once, for the dict of full attention: local layers then get the class's own
        found[LOCAL].setdefault("rope_theta", given.default_theta)
    found[LOCAL].setdefault("rope_theta", given.local_theta)
    return found


def _filled(params: Mapping[str, Any], given: Given) -> dict[str, Any]:
    filled = dict(params)
    filled.setdefault("rope_type", filled.get("type", "default"))
    filled.setdefault("rope_theta", given.default_theta if given.top_theta is None else given.top_theta)
    if given.top_share is not None:
        filled.setdefault("partial_rotary_factor", given.top_share)
    if given.model_type == "phi3" and filled["rope_type"] in ("su", "yarn"):
        filled["rope_type"] = "longrope"  # Phi-3's config class does this without a word
    if filled["rope_type"] in WITH_ORIGINAL:
        top = given.config.get("original_max_position_embeddings")
        if top is not None:
            filled["original_max_position_embeddings"] = top
        else:
            filled.setdefault("original_max_position_embeddings", given.max_length)
    return filled


def rotated(params: Mapping[str, Any], given: Given) -> int:
    """Rotated dimensions of a head."""
    return int(given.head_dim * number(params, "partial_rotary_factor", 1.0))


def layer(params: Mapping[str, Any], given: Given) -> Layer:
    """The table of one standard rope dict.

    Raises:
        Refused: an unknown type, a missing key or one of another kind.
    """
    kind, dim, theta = str(params["rope_type"]), rotated(params, given), number(params, "rope_theta")
    if kind == "default":
        return Layer(kind, theta, 1.0, None, 1.0, tables.unscaled(dim, theta))
    if kind == "linear":
        factor = number(params, "factor")
        return Layer(kind, theta, factor, None, 1.0, tables.linear(dim, theta, factor))
    if kind == "dynamic":
        factor, longest = number(params, "factor"), float(given.max_length or 0)
        return Layer(kind, theta, factor, None, 1.0, tables.dynamic(dim, theta, factor, longest, longest))
    if kind not in WITH_ORIGINAL:
        raise Refused(f"rope type {kind!r} is unknown")
    original = number(params, "original_max_position_embeddings")
    if kind == "longrope":
        return _longrope(params, given, dim, theta, original)
    factor = number(params, "factor")
    if kind == "llama3":
        low, high = number(params, "low_freq_factor"), number(params, "high_freq_factor")
        return Layer(kind, theta, factor, int(original), 1.0, tables.llama3(dim, theta, factor, original, low, high))
    return Layer(kind, theta, factor, int(original), magnitude(params, factor), ramp(params, dim, theta))


def ramp(params: Mapping[str, Any], dim: int, theta: float) -> Any:
    """YaRN's frequencies from a standard dict; a beta of 0 counts as missing."""
    fast, slow = number(params, "beta_fast", 32.0) or 32.0, number(params, "beta_slow", 1.0) or 1.0
    original, truncate = number(params, "original_max_position_embeddings"), bool(params.get("truncate", True))
    return tables.yarn(dim, theta, number(params, "factor"), original, fast, slow, truncate)


def magnitude(params: Mapping[str, Any], factor: float) -> float:
    """attention_factor as it stands, else the ratio of the two mscales if both are set, else the rule."""
    if params.get("attention_factor") is not None:
        return number(params, "attention_factor")
    over, under = number(params, "mscale", 0.0), number(params, "mscale_all_dim", 0.0)
    return tables.mscale(factor, over) / tables.mscale(factor, under) if over and under else tables.mscale(factor)


def _longrope(params: Mapping[str, Any], given: Given, dim: int, theta: float, original: float) -> Layer:
    long, short = (factors(params, key, dim // 2) for key in ("long_factor", "short_factor"))
    longest = float(given.max_length or original)
    factor = number(params, "factor", longest / original)
    stated = params.get("attention_factor")
    attention = tables.longrope_magnitude(factor, original) if stated is None else number(params, "attention_factor")
    beyond = tables.longrope(dim, theta, long if longest > original else short)
    before = tables.longrope(dim, theta, short) if short != long else None
    return Layer("longrope", theta, factor, int(original), attention, beyond, before)
