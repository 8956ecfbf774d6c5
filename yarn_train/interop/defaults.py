"""What transformers fills in for an architecture where a config.json is silent: asked of its config class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING

THETA = 10_000.0


@dataclass(frozen=True)
class Defaults:
    """Of one architecture; None where its class leaves a value open.

    Attributes:
        theta: the base of layers that see everything.
        share: rotated part of a head.
        max_length: max_position_embeddings in tokens.
        head_dim, hidden_size, heads: sizes of attention.
    """

    theta: float = THETA
    share: float | None = None
    max_length: int | None = None
    head_dim: int | None = None
    hidden_size: int | None = None
    heads: int | None = None


@cache
def defaults_of(kind: str) -> Defaults:
    """The defaults of a ``model_type``; those of plain RoPE for one that the installed transformers does not have."""
    text = f"{kind}_text"  # of a model with several parts, the one that rotates
    known = next((name for name in (text, kind) if name in CONFIG_MAPPING), None)
    if known is None:
        return Defaults()
    cls = CONFIG_MAPPING[known]
    theta: Any = getattr(cls, "default_theta", THETA)
    theta = theta.get("global", theta.get("full_attention", THETA)) if isinstance(theta, dict) else theta
    sizes = ("max_position_embeddings", "head_dim", "hidden_size", "num_attention_heads")
    return Defaults(float(theta), _share(cls), *(_whole(getattr(cls, size, None)) for size in sizes))


def _share(cls: Any) -> float | None:
    """Only an instance tells: some classes put it into their rope dict while they are made."""
    try:
        params = cls().rope_parameters or {}
    except Exception:  # a class that cannot be made of nothing has no default to tell
        return None
    share = params.get("partial_rotary_factor")
    return float(share) if isinstance(share, int | float) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
