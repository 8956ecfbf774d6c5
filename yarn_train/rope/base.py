"""What a Hugging Face config says about RoPE: in either spelling, for all layers or for those that see everything.

Models with local and global layers (Gemma 3, OLMo 3) have one rope dict per kind of layer. What is read, and later
extended, is the dict of the layers with full attention: a layer with a window never meets a distance beyond it, and
keeps the frequencies it was trained with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, problem

FULL = "full_attention"  # the kind of layers that see the whole sequence, in transformers' names
SHARED_KEYS = {"rope_theta", "partial_rotary_factor"}  # kept from the base whatever the method
PLAIN_KEYS = {"rope_type", "type", *SHARED_KEYS}  # all that an unscaled rope dict may say


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
        ConfigError: the model has no RoPE, or one per kind of layer and none of them sees everything.
    """
    reason = not_rope(hf_config)
    if reason:
        raise ConfigError(reason)
    params = rope_dict(hf_config)
    theta = _first(params, hf_config, "rope_theta", "rotary_emb_base")
    share = _first(params, hf_config, "partial_rotary_factor", "rotary_pct") or 1.0
    plain = rope_type(params) == "default" and not set(params) - PLAIN_KEYS
    # Phi-3 fills a top-level original length with a default that need not be true, so an unscaled base ignores it.
    length = _first(params, hf_config, "original_max_position_embeddings")
    length = getattr(hf_config, "max_position_embeddings", None) if plain else length
    return BaseRope(float(theta), int(head_dim(hf_config) * share), length, None if plain else params)


def pretrained_length(hf_config: Any) -> int | None:
    """Tokens a model was pretrained at, of a scaled or an unscaled config; None where neither says it."""
    return base_rope(hf_config).original_length


def possible_lengths(hf_config: Any) -> tuple[int, ...]:
    """What a model may have been pretrained at, as far as its config tells.

    Models of position interpolation were published with either length as max_position_embeddings: LongLoRA's with the
    original one, others with the extended one, and ``linear`` names nothing but its factor.
    """
    base, longest = base_rope(hf_config), getattr(hf_config, "max_position_embeddings", None)
    if base.original_length is not None:
        return (base.original_length,)
    if base.scaled is None or rope_type(base.scaled) != "linear" or not longest:
        return ()
    return longest, round(longest / float(base.scaled["factor"]))


def not_rope(config: Any) -> str | None:
    """Why this model's positions are not a RoPE read from the config, as a problem; None if they are."""
    got = _other_positions(config)
    if got is None:
        return None
    kind = getattr(config, "model_type", type(config).__name__)
    allowed = "a model whose layers of full attention have one RoPE"
    return problem("model.path", f"{kind}: {got}", allowed, "use another base")


def _other_positions(config: Any) -> str | None:
    kind = getattr(config, "model_type", type(config).__name__)
    attention = getattr(config, "attn_config", None)
    if getattr(config, "alibi", False) or getattr(attention, "alibi", False) or kind == "bloom":
        return "ALiBi"
    if hasattr(config, "relative_attention_num_buckets"):
        return "relative position buckets"
    if hasattr(config, "rotary_dim"):
        return "rotary tables hard-coded in the model"
    if hasattr(config, "text_config"):
        return "a composite config"
    params = _all(config)
    if not params and not hasattr(config, "rope_theta") and not hasattr(config, "rotary_emb_base"):
        return "learned or no positions"
    if not nested(params):
        return None
    if not isinstance(params.get(FULL), Mapping):
        return "one RoPE per kind of layer, and none for full attention"
    others = [name for name, one in params.items() if name != FULL and isinstance(one, Mapping)]
    scaled = [name for name in others if rope_type(params[name]) != "default" or set(params[name]) - PLAIN_KEYS]
    return f"RoPE that is scaled in layers of {', '.join(scaled)} too" if scaled else None


def nested(params: Mapping[str, Any]) -> bool:
    """Whether a rope dict has one dict per kind of layer."""
    return any(isinstance(value, Mapping) for value in params.values())


def rope_dict(config: Any) -> dict[str, Any]:
    """A copy of the rope dict of the layers that see everything; empty for an unscaled config of transformers 4."""
    params = _all(config)
    return dict(params[FULL]) if nested(params) else params


def with_rope_dict(config: Any, params: dict[str, Any]) -> Any:
    """A copy of a config with `params` in place of :func:`rope_dict`; other kinds of layers keep theirs."""
    changed, whole = copy.deepcopy(config), _all(config)
    changed.rope_parameters = {**whole, FULL: params} if nested(whole) else params
    return changed


def rope_type(params: Mapping[str, Any]) -> str:
    """The type that a rope dict names, in either spelling."""
    return str(params.get("rope_type") or params.get("type") or "default")


def head_dim(config: Any) -> int:
    """Dimensions per head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _all(config: Any) -> dict[str, Any]:
    params = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return copy.deepcopy(dict(params))


def _first(params: Mapping[str, Any], config: Any, *names: str) -> Any:
    """The first value that is set, in the rope dict and then on the config itself, under any of these names."""
    for holder in (params, vars(config)):
        for name in names:
            if holder.get(name) is not None:
                return holder[name]
    return None
