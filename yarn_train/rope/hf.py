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
from dataclasses import dataclass
from typing import Any

import torch

from ..config import RopeConfig
from ..errors import ConfigError, problem
from .frequencies import RopeTable, attention_factor, base_frequencies, rope_table
from .verify import RopeTableError as RopeTableError
from .verify import rotary_modules as rotary_modules
from .verify import verify_tables as verify_tables

_SHARED_KEYS = {"rope_theta", "partial_rotary_factor"}  # kept from the base whatever the method
_PLAIN_KEYS = {"rope_type", "type", *_SHARED_KEYS}  # all that an unscaled rope dict may say
# Architectures whose config.json of transformers 4 spells theta and the rotary share differently.
_OLD_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}


@dataclass(frozen=True)
class BaseRope:
    """What a config says about rope.

    Attributes:
        theta: the base b.
        rotary_dim: rotated dimensions per head.
        original_length: tokens the model was pretrained at, as far as the config tells; None where it does not.
        scaled: the whole rope dict if it is anything else than plain RoPE, else None.
    """

    theta: float
    rotary_dim: int
    original_length: int | None
    scaled: dict[str, Any] | None


def base_rope(hf_config: Any) -> BaseRope:
    """Read a config object in the spelling of transformers 5 (``rope_parameters``) or 4 (``rope_scaling``).

    Raises:
        ConfigError: the model has no RoPE, or a different one for every kind of layer.
    """
    reason = _not_rope(hf_config)
    if reason:
        raise ConfigError(reason)
    params = _rope_dict(hf_config)
    theta = _first(params, hf_config, "rope_theta", "rotary_emb_base")
    share = _first(params, hf_config, "partial_rotary_factor", "rotary_pct") or 1.0
    plain = _rope_type(params) == "default" and not set(params) - _PLAIN_KEYS
    # Phi-3 fills a top-level original length with a default that need not be true, so an unscaled base ignores it.
    length = _first(params, hf_config, "original_max_position_embeddings")
    length = getattr(hf_config, "max_position_embeddings", None) if plain else length
    return BaseRope(float(theta), int(_head_dim(hf_config) * share), length, None if plain else params)


def pretrained_length(hf_config: Any) -> int | None:
    """Tokens a model was pretrained at, of a scaled or an unscaled config; None where neither says it.

    ``linear`` names only its factor; its original length is the extended one divided by it.
    """
    base = base_rope(hf_config)
    if base.original_length is None and base.scaled is not None and _rope_type(base.scaled) == "linear":
        return round(hf_config.max_position_embeddings / float(base.scaled["factor"]))
    return base.original_length


def check_base(hf_config: Any, rope: RopeConfig) -> list[str]:
    """Every reason why this base cannot be extended as asked, in the house style; empty when there is none."""
    reason = _not_rope(hf_config)
    if reason:
        return [reason]
    base, found = base_rope(hf_config), []
    if base.scaled is not None:
        kind = _rope_type(base.scaled)
        length = f"; it was pretrained at {base.original_length} tokens" if base.original_length else ""
        odd = sorted(set(base.scaled) - _PLAIN_KEYS)
        got = f"a base with rope_type={kind}" + (f" and {', '.join(odd)}" if kind == "default" else "") + length
        fix = "use the unscaled base it was made from; rope.factor is absolute, never on top of another"
        found.append(problem("model.path", got, "a base with unscaled RoPE", fix))
    if base.rotary_dim < 2 or base.rotary_dim % 2:
        got = f"{base.rotary_dim} rotary dimensions per head"
        found.append(problem("model.path", got, "an even number", "use another base"))
    if base.scaled is None:
        found += _check_length(base.original_length, rope.original_max_position_embeddings)
    return found


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
    shared = {key: value for key, value in _rope_dict(hf_config).items() if key in _SHARED_KEYS}
    for spelling in _spellings(rope, table, base.theta, length):
        config = copy.deepcopy(hf_config)
        config.rope_parameters = {**spelling, **shared, "rope_theta": base.theta}
        config.max_position_embeddings = round(rope.factor * length)
        if hasattr(config, "original_max_position_embeddings"):  # Phi-3: it overrides the one in the rope dict
            config.original_max_position_embeddings = length
        if hasattr(config, "head_dim") and config.head_dim is None:  # transformers' yarn fails on a null head_dim
            config.head_dim = _head_dim(config)
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
    if not params or _nested(params):
        return written
    theta_name, share_name = _OLD_NAMES.get(str(written.get("model_type")), ("rope_theta", "partial_rotary_factor"))
    written["rope_theta"] = written[theta_name] = params["rope_theta"]
    if "partial_rotary_factor" in params:
        written["partial_rotary_factor"] = written[share_name] = params["partial_rotary_factor"]
    old = {key: value for key, value in params.items() if key not in _PLAIN_KEYS}
    kind = _rope_type(params)
    written["rope_scaling"] = None if kind == "default" else {"rope_type": kind, "type": kind, **old}
    if kind == "longrope" and "attention_factor" in params:
        written["rope_scaling"]["short_mscale"] = written["rope_scaling"]["long_mscale"] = params["attention_factor"]
    return written


def method_of(hf_config: Any) -> tuple[str, float]:
    """(method, factor) of any config, for tables: our name where we write such a config, else Hugging Face's.

    longrope is "ntk" or "yarn_by_rotations" or "ntk_by_parts_by_rotations" (alpha 1, beta 32) if its factors say so.
    """
    base = base_rope(hf_config)
    params = base.scaled or {}
    kind, factor = _rope_type(params), float(params.get("factor") or 1.0)
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
        fix = f"use null or {derived}; if the base config is wrong, correct max_position_embeddings there"
        return [problem(key, given, f"{derived}, the max_position_embeddings of the unscaled base", fix)]
    return []


def _not_rope(config: Any) -> str | None:
    """Why this model's positions are not one RoPE read from the config, as a problem; None if they are."""
    kind = getattr(config, "model_type", type(config).__name__)
    attention = getattr(config, "attn_config", None)
    if getattr(config, "alibi", False) or getattr(attention, "alibi", False) or kind == "bloom":
        got = "ALiBi"
    elif hasattr(config, "relative_attention_num_buckets"):
        got = "relative position buckets"
    elif hasattr(config, "rotary_dim"):
        got = "rotary tables hard-coded in the model"
    elif hasattr(config, "text_config"):
        got = "a composite config"
    elif not _rope_dict(config) and not hasattr(config, "rope_theta") and not hasattr(config, "rotary_emb_base"):
        got = "learned or no positions"
    elif _nested(_rope_dict(config)):
        got = "one RoPE per kind of layer, which needs one factor per kind"
    else:
        return None
    return problem("model.path", f"{kind}: {got}", "a model with one RoPE for all layers", "use another base")


def _nested(params: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in params.values())


def _rope_dict(config: Any) -> dict[str, Any]:
    """A copy of the rope dict of either spelling; empty for an unscaled config of transformers 4."""
    params = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return copy.deepcopy(dict(params))


def _rope_type(params: Mapping[str, Any]) -> str:
    return str(params.get("rope_type") or params.get("type") or "default")


def _first(params: Mapping[str, Any], config: Any, *names: str) -> Any:
    """The first value that is set, in the rope dict and then on the config itself, under any of these names."""
    for holder in (params, vars(config)):
        for name in names:
            if holder.get(name) is not None:
                return holder[name]
    return None


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
