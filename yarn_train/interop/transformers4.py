"""transformers 4: ``modeling_rope_utils.py`` and ``configuration_llama.py`` of 4.57.6.

Only ``rope_scaling`` counts; ``rope_parameters`` is kept and never read. theta and the rotated share stand at the top
level. ``type`` wins over ``rope_type``. yarn falls back to max_position_embeddings for the original length; longrope
knows only an original length at the TOP level, so that without it the short list is used at every length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables, transformers5
from .given import MIXED, Given
from .reading import Layer, Reading, Refused, factors, number, reading

NAME = "transformers 4"
PHI3 = ("su", "yarn", "longrope")  # it takes the first two for the third


def read(given: Given) -> Reading:
    """What transformers 4.57 computes."""
    return reading(NAME, given, _rule)


def _rule(given: Given) -> tuple[dict[str, Layer], int | None, list[str]]:
    kind = given.scaling.get("type")
    if given.model_type == "phi3" and given.scaling and (len(given.scaling) != 3 or kind not in PHI3):
        raise Refused("of Phi-3, rope_scaling must have three keys: type, short_factor, long_factor")
    notes = ["does not read rope_parameters"] if given.parameters and not given.scaling and _scaled(given) else []
    found = {"all": _layer(given.scaling, given)}
    if given.model_type in MIXED:
        local = given.local_theta
        table = tables.unscaled(given.head_dim, local)
        found = {"full_attention": found["all"], "sliding_attention": Layer("default", local, 1.0, None, 1.0, table)}
    return found, given.max_length, notes


def _scaled(given: Given) -> bool:
    found = given.parameters
    return bool({"factor", "long_factor"} & set(found)) or any(isinstance(value, Mapping) for value in found.values())


def theta_of(given: Given) -> float:
    """theta at the top level, else the architecture's default."""
    return number({"rope_theta": given.top_theta}, "rope_theta", given.default_theta)


def _layer(params: Mapping[str, Any], given: Given) -> Layer:
    if any(isinstance(value, Mapping) for value in params.values()):
        raise Refused("rope_scaling has one dict per kind of layer")
    theta, kind = theta_of(given), params.get("type", params.get("rope_type"))
    dim = transformers5.rotated({"partial_rotary_factor": given.top_share}, given)
    filled = {**params, "rope_type": kind if params else "default", "rope_theta": theta}
    filled["partial_rotary_factor"] = given.top_share
    if filled["rope_type"] is None:
        raise Refused("rope_scaling has no rope_type")
    if kind == "longrope":
        return _longrope(params, given, dim, theta)
    if kind == "yarn":
        filled["original_max_position_embeddings"] = params.get("original_max_position_embeddings") or given.max_length
    return transformers5.layer(filled, given)


def _longrope(params: Mapping[str, Any], given: Given, dim: int, theta: float) -> Layer:
    long, short = (factors(params, key, dim // 2) for key in ("long_factor", "short_factor"))
    top, longest = given.config.get("original_max_position_embeddings"), float(given.max_length or 0)
    original = float(top) if top else longest
    factor = longest / original if top else number(params, "factor")
    stated = params.get("attention_factor")
    attention = tables.longrope_magnitude(factor, original) if stated is None else number(params, "attention_factor")
    beyond = tables.longrope(dim, theta, long if longest > original else short)
    before = tables.longrope(dim, theta, short) if short != long and longest > original else None
    return Layer("longrope", theta, factor, int(original), attention, beyond, before)
