"""Between our rope tables and Hugging Face configs: reading a base config, writing a scaled one, describing any.

The only file that knows Hugging Face's names for rope. Models keep their OWN rotary module; we only write the config
that makes this module compute exactly our table, and ``verify_tables`` compares the built model. Spelling by method:

    none                                 default
    pi                                   linear
    yarn, ntk_by_parts (ramp=by_index)   yarn (ntk_by_parts: attention_factor 1.0)
    anything else                        longrope: one explicit factor per pair, the same list for short and long

default, linear and yarn give our float32 table bit for bit. longrope multiplies by float32 factors and so gives it
within 2.5e-7 relative, at every sequence length because both lists are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ..config import RopeConfig
from ..errors import ConfigError, problem
from .base import (
    FULL,
    PLAIN_KEYS,
    SHARED_KEYS,
    BaseRope,
    head_dim,
    nested,
    not_rope,
    rope_dict,
    rope_type,
    with_rope_dict,
)
from .base import base_rope as base_rope
from .base import possible_lengths as possible_lengths
from .base import pretrained_length as pretrained_length
from .frequencies import RopeTable, attention_factor, base_frequencies, rope_table
from .verify import RopeTableError as RopeTableError
from .verify import extended as extended
from .verify import rotary_modules as rotary_modules
from .verify import rotary_tables as rotary_tables
from .verify import verify_tables as verify_tables

# Architectures whose config.json of transformers 4 spells theta and the rotary share differently.
_LOCAL_NAMES = {"gemma3_text": "rope_local_base_freq"}  # and theta of its local layers
_OLD_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}


def check_base(hf_config: Any, rope: RopeConfig) -> list[str]:
    """Every reason why this base cannot be extended as asked, in the house style; empty when there is none."""
    reason = not_rope(hf_config)
    if reason:
        return [reason]
    base, found = base_rope(hf_config), []
    if base.scaled is not None:
        kind = rope_type(base.scaled)
        length = f"; it was pretrained at {base.original_length} tokens" if base.original_length else ""
        odd = sorted(set(base.scaled) - PLAIN_KEYS)
        got = f"a base with rope_type={kind}" + (f" and {', '.join(odd)}" if kind == "default" else "") + length
        fix = "set model.base_rope=undo to drop that scaling, or use the base it was made from: factors are absolute"
        fix = "use another base" if kind == "default" else fix
        found.append(problem("model.path", got, "a base with unscaled RoPE", fix))
    if base.rotary_dim < 2 or base.rotary_dim % 2:
        got = f"{base.rotary_dim} rotary dimensions per head"
        found.append(problem("model.path", got, "an even number", "use another base"))
    if base.scaled is None:
        found += _check_length(base.original_length, rope.original_max_position_embeddings)
    return found


def reach(hf_config_base: Any, rope: RopeConfig) -> float | None:
    """Tokens that an UNSCALED base is extended to, s x L; None where L is not known."""
    if not_rope(hf_config_base):
        return None
    length = rope.original_max_position_embeddings or base_rope(hf_config_base).original_length
    return rope.factor * length if length else None


def table_for(hf_config_base: Any, rope: RopeConfig) -> RopeTable:
    """The table that a model made from this UNSCALED base config must hold; inv_freq is [rotary_dim/2] float32.

    Raises:
        ConfigError: everything that ``check_base`` finds.
    """
    found = check_base(hf_config_base, rope)
    if found:
        raise ConfigError(found)
    base = base_rope(hf_config_base)
    asked = {name: getattr(rope, name) for name in ("factor", "alpha", "beta", "temperature", "ramp", "truncate")}
    length = _original_length(base, rope)
    return rope_table(rope.method, dim=base.rotary_dim, theta=base.theta, original_length=length, **asked)


def scaled_config(hf_config: Any, rope: RopeConfig) -> Any:
    """A copy of an UNSCALED base config whose own rotary module computes our table; max length is round(s * L).

    Raises:
        ConfigError: everything that ``check_base`` finds, or an architecture that rewrites every spelling we have.
    """
    table = table_for(hf_config, rope)
    base = base_rope(hf_config)
    length = _original_length(base, rope)
    shared = {key: value for key, value in rope_dict(hf_config).items() if key in SHARED_KEYS}
    per_layer = nested(getattr(hf_config, "rope_parameters", None) or {})
    for spelling in _spellings(rope, table, base.theta, length):
        if per_layer and spelling.get("truncate") is False:  # transformers looks for it beside the dicts, not in them
            continue
        config = with_rope_dict(hf_config, {**spelling, **shared, "rope_theta": base.theta})
        config.max_position_embeddings = round(rope.factor * length)
        # Phi-3's overrides the one in the rope dict; linear has no place for it there, and without it nobody can tell.
        if hasattr(config, "original_max_position_embeddings") or spelling["rope_type"] == "linear":
            config.original_max_position_embeddings = length
        if hasattr(config, "head_dim") and config.head_dim is None:  # transformers' yarn fails on a null head_dim
            config.head_dim = head_dim(config)
        if _survives_reload(config):
            return config
    fix = "use a base whose config keeps what its config.json says"
    kind = getattr(hf_config, "model_type", type(hf_config).__name__)
    raise ConfigError(problem("rope.method", rope.method, f"a method that {kind} configs can carry", fix))


def write_both_spellings(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """A saved ``config.json`` that transformers 4, transformers 5 and servers read alike; a new dict.

    transformers 5 saves ``rope_parameters`` only. Readers of the older spelling then find no ``rope_theta`` and no
    ``rope_scaling`` and silently use theta 1e4 without scaling, so we add both (and ``type``, the name of
    ``rope_type`` before 4.43). Where both are there transformers 5 takes ``rope_scaling``. Its ``short_mscale`` and
    ``long_mscale`` are what vLLM's longrope reads instead of ``attention_factor``. Without RoPE nothing changes.
    """
    written = dict(config_json)
    params = written.get("rope_parameters")
    if not params:
        return written
    if nested(params):
        return _write_older_per_layer(written, params)
    theta_name, share_name = _OLD_NAMES.get(str(written.get("model_type")), ("rope_theta", "partial_rotary_factor"))
    written["rope_theta"] = written[theta_name] = params["rope_theta"]
    if "partial_rotary_factor" in params:
        written["partial_rotary_factor"] = written[share_name] = params["partial_rotary_factor"]
    written["rope_scaling"] = _older(params)
    return written


def _older(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling`` for a rope dict."""
    kind = rope_type(params)
    if kind == "default":
        return None
    old = {"rope_type": kind, "type": kind, **{key: params[key] for key in params if key not in PLAIN_KEYS}}
    if kind == "longrope" and "attention_factor" in params:
        old["short_mscale"] = old["long_mscale"] = params["attention_factor"]
    return old


def _write_older_per_layer(written: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The older spelling where each kind of layer has its RoPE: what it says is meant for those of full attention."""
    whole = params.get(FULL)
    if whole:
        written["rope_theta"], written["rope_scaling"] = whole["rope_theta"], _older(whole)
    local = params.get("sliding_attention")
    if local and written.get("model_type") in _LOCAL_NAMES:
        written[_LOCAL_NAMES[written["model_type"]]] = local["rope_theta"]
    return written


def method_of(hf_config: Any) -> tuple[str, float]:
    """(method, factor) of any config, for tables: our name where we write such a config, else Hugging Face's.

    longrope is "ntk" or "yarn_by_rotations" or "ntk_by_parts_by_rotations" (alpha 1, beta 32) if its factors say so.
    """
    base = base_rope(hf_config)
    params = base.scaled or {}
    kind, factor = rope_type(params), float(params.get("factor") or 1.0)
    if kind == "longrope":
        if not params.get("factor") and base.original_length:  # Phi-3 leaves it to the two lengths
            factor = hf_config.max_position_embeddings / base.original_length
        return _longrope_method(base, params, factor), factor
    if kind == "yarn" and params.get("attention_factor") == 1.0 and factor > 1:
        kind = "ntk_by_parts"
    return {"default": "none", "linear": "pi"}.get(kind, kind), factor


def _spellings(rope: RopeConfig, table: RopeTable, theta: float, length: int) -> list[dict[str, Any]]:
    """Rope dicts that say this table, the one most readers know first; longrope can say any."""
    longrope = _longrope(table, theta, rope.factor, length)
    by_index = rope.ramp == "by_index"
    if rope.method in ("yarn", "ntk_by_parts") and by_index:
        yarn: dict[str, Any] = {"rope_type": "yarn", "factor": rope.factor, "original_max_position_embeddings": length}
        yarn |= {"beta_fast": rope.beta, "beta_slow": rope.alpha, "truncate": rope.truncate}
        # Servers disagree on whether attention_factor replaces or multiplies the rule: say it only when it differs.
        if table.attention_factor != attention_factor("yarn", rope.factor):
            yarn["attention_factor"] = table.attention_factor
        return [yarn, longrope]
    if rope.method == "none" and table.attention_factor == 1.0:
        return [{"rope_type": "default"}]
    if rope.method == "pi" and table.attention_factor == 1.0:
        return [{"rope_type": "linear", "factor": rope.factor}, longrope]
    return [longrope]


def _longrope(table: RopeTable, theta: float, factor: float, length: int) -> dict[str, Any]:
    """Per-pair divisors of the unscaled frequencies; the same list for short and long, so no length switches them."""
    unscaled = base_frequencies(2 * len(table.inv_freq), theta)
    divisors = (unscaled.double() / table.inv_freq.double()).float().tolist()
    return {
        "rope_type": "longrope",
        "factor": factor,
        "original_max_position_embeddings": length,
        "short_factor": divisors,
        "long_factor": list(divisors),
        "attention_factor": table.attention_factor,
    }


def _longrope_method(base: BaseRope, params: Mapping[str, Any], factor: float) -> str:
    divisors = torch.tensor(params.get("long_factor") or [], dtype=torch.float64)
    length = base.original_length
    one_list = params.get("short_factor") == params.get("long_factor") and len(divisors) == base.rotary_dim // 2 > 1
    if not one_list or not length:
        return "longrope"
    given = base_frequencies(base.rotary_dim, base.theta).double() / divisors
    names = {"ntk": "ntk", "yarn": "yarn_by_rotations", "ntk_by_parts": "ntk_by_parts_by_rotations"}
    ours: dict[str, Any] = {"dim": base.rotary_dim, "theta": base.theta, "original_length": length}
    for method, name in names.items():
        table = rope_table(method, factor=factor, ramp="by_rotations", **ours)
        same_factor = abs(table.attention_factor - params.get("attention_factor", 0.0)) < 1e-6
        if same_factor and torch.allclose(given, table.inv_freq.double(), rtol=1e-5, atol=0.0):
            return name
    return "longrope"


def _survives_reload(config: Any) -> bool:
    """Whether saving and loading keeps the rope dict: Phi-3, for one, turns yarn into longrope without a word."""
    try:
        reloaded = type(config).from_dict(copy.deepcopy(config.to_dict()))
    except (ValueError, KeyError, TypeError):
        return False
    return bool(reloaded.rope_parameters == config.rope_parameters)


def _original_length(base: BaseRope, rope: RopeConfig) -> int:
    length = rope.original_max_position_embeddings or base.original_length
    assert length is not None  # check_base has refused a missing length
    return length


def _check_length(derived: int | None, given: int | None) -> list[str]:
    key = "rope.original_max_position_embeddings"
    if derived is None and given is None:
        fix = "set it to the number of tokens the base was pretrained at"
        return [problem(key, None, "a length, as the base config has no max_position_embeddings", fix)]
    if derived is not None and given is not None and derived != given:
        fix = f"use null or {derived}; if {given} is right and the base's config is not, add model.base_rope=undo"
        return [problem(key, given, f"{derived}, the max_position_embeddings of the unscaled base", fix)]
    return []
