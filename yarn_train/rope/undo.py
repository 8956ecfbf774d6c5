"""Bases that are extended already: their scaling undone, so that a run's own factor counts from the original length.

A model that YaRN, PI or NTK-aware scaling took to 16 times its length goes on to 32 with ``rope.factor=32`` and the
frequencies of s = 32: factors are absolute, and weights are not changed by what was multiplied into cos and sin. What
is needed is the unscaled base b and the original length L. Where a config leaves L open we ask, because transformers
fills it in from the extended length without a word.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from ..config import ModelConfig, RopeConfig
from ..errors import ConfigError, problem
from .base import SHARED_KEYS, BaseRope, base_rope, not_rope, possible_lengths, rope_dict, rope_type, with_rope_dict
from .frequencies import attention_factor
from .hf import method_of

LENGTH = "rope.original_max_position_embeddings"
OURS = ("ntk", "yarn_by_rotations", "ntk_by_parts_by_rotations")  # what this project spells as longrope
KNOWN = ("yarn", "linear")  # scalings of this family, whose weights know the frequencies that follow from a factor
UNDONE = (*KNOWN, "llama3", "longrope", "dynamic")


def unscaled(config: Any, model: ModelConfig, rope: RopeConfig) -> tuple[Any, str]:
    """A base as if nothing had been scaled, and what was undone, in words; the config itself where nothing was.

    What ``model.base_rope`` does not allow to be undone stays, for ``check_base`` to refuse.

    Raises:
        ConfigError: the original length is not known, or stated differently by the config.
    """
    if not_rope(config):
        return config, ""
    base, params, given = base_rope(config), rope_dict(config), rope.original_max_position_embeddings
    if base.scaled is None and model.rope_theta is None:
        return _relengthed(config, base, given) if model.base_rope == "undo" else (config, "")
    kind = rope_type(params)
    if base.scaled is not None and not _allowed(config, kind, model.base_rope):
        return config, ""
    length = _length(config, base, kind, model, given)
    theta = model.rope_theta or base.theta
    shared = {key: value for key, value in params.items() if key in SHARED_KEYS}
    changed = with_rope_dict(config, {"rope_type": "default", **shared, "rope_theta": theta})
    changed.max_position_embeddings = length
    return changed, _told(config, base, kind, theta, length)


def _relengthed(config: Any, base: BaseRope, given: int | None) -> tuple[Any, str]:
    """An unscaled base whose config names another length than the one it was pretrained at."""
    if given is None or given == base.original_length:
        return config, ""
    changed = copy.deepcopy(config)
    changed.max_position_embeddings = given
    return changed, f"the base's config says {base.original_length} tokens; original length {given}, as stated"


def own_scaling(config: Any, rope: RopeConfig) -> RopeConfig | None:
    """The scaling that a base came with, as our options: to read it as it was made; None where they cannot say it.

    Args:
        rope: the run's, whose original length is the base's.
    """
    if not_rope(config):
        return None
    params = base_rope(config).scaled
    if params is None or rope_type(params) not in KNOWN:
        return None
    length, factor = rope.original_max_position_embeddings, float(params["factor"])
    if rope_type(params) == "linear":
        return RopeConfig(method="pi", factor=factor, original_max_position_embeddings=length)
    if params.get("mscale") or params.get("mscale_all_dim"):
        return None
    given = params.get("attention_factor") or attention_factor("yarn", factor)
    usual = math.isclose(given, attention_factor("yarn", factor), rel_tol=1e-9)
    return RopeConfig(
        method="yarn",
        factor=factor,
        original_max_position_embeddings=length,
        alpha=float(params.get("beta_slow") or 1.0),
        beta=float(params.get("beta_fast") or 32.0),
        temperature="auto" if usual else given**-2,
        truncate=bool(params.get("truncate", True)),
    )


def _allowed(config: Any, kind: str, asked: str) -> bool:
    if asked == "undo":
        return kind in UNDONE
    return asked == "auto" and (kind in KNOWN or method_of(config)[0] in OURS)


def _length(config: Any, base: BaseRope, kind: str, model: ModelConfig, given: int | None) -> int:
    extended: Any = getattr(config, "max_position_embeddings", None)
    if model.rope_theta is not None and base.scaled is None:
        if given is None:
            fix = "set it to what the base was pretrained at, before its theta was changed"
            raise ConfigError(problem(LENGTH, None, "a length, where model.rope_theta undoes another theta", fix))
        return given
    if kind == "linear" and given is None and base.original_length is None:
        either = possible_lengths(config)
        got = f"null, for a base with rope_type=linear and max_position_embeddings={extended}"
        fix = "state what it was pretrained at: PI models are published with either length there"
        raise ConfigError(problem(LENGTH, got, " or ".join(map(str, either)), fix))
    stated = extended if kind == "dynamic" else base.original_length
    if given is None and (stated is None or (stated == extended and kind != "dynamic")):
        got = f"null, for a base with rope_type={kind} whose config gives {extended} as its length"
        fix = f"state what it was pretrained at, {LENGTH}={extended} if that is it: transformers fills in this number"
        fix += " where a config has none, so it cannot be told from one that was meant"
        raise ConfigError(problem(LENGTH, got, "the original length in tokens", fix))
    if given is not None and stated not in (None, extended, given):
        fix = f"use null or {stated}; if the base config is wrong, correct it there"
        raise ConfigError(problem(LENGTH, given, f"{stated}, which the base's own {kind} names", fix))
    return int(given or stated or 0)


def _told(config: Any, base: BaseRope, kind: str, theta: float, length: int) -> str:
    """For a person: what the base came with."""
    if base.scaled is None:
        return f"theta {base.theta:g} of the base undone: {theta:g}, original length {length}"
    method, factor = method_of(config)
    name = method if kind == "longrope" else {"linear": "pi"}.get(kind, kind)
    longest = factor * length if kind in KNOWN or method in OURS else getattr(config, "max_position_embeddings", None)
    reach = f" of original {length} = {longest:g} tokens" if factor > 1 and longest else f", original length {length}"
    return f"the base came with {name}, factor {factor:g}{reach}; this run's own scaling takes its place"
