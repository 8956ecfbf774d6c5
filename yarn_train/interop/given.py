"""A Hugging Face folder as it is judged: config.json and what the tokenizer says, nothing computed yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, problem
from .defaults import Defaults, defaults_of

# Architectures whose older config.json names theta and the rotated share differently.
OLD_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}
GEMMA3 = ("gemma3_text", "gemma3")
MIXED = (*GEMMA3, "olmo3")  # local layers are never scaled, in either spelling: rope_scaling is meant for the others


@dataclass(frozen=True)
class Given:
    """What a folder says.

    Attributes:
        config: the (text) config as it stands in the file.
        max_length: max_position_embeddings in tokens, None where the file has none.
        head_dim: dimensions of a head.
        tokenizer_length: model_max_length of tokenizer_config.json in tokens; None where it says none.
        part: of a composite config, whose parts are written without their defaults.
    """

    config: Mapping[str, Any]
    max_length: int | None
    head_dim: int
    tokenizer_length: int | None = None
    part: bool = False

    @property
    def model_type(self) -> str:
        """``model_type``, lower case; empty where the file has none."""
        return str(self.config.get("model_type") or "").lower()

    @property
    def default_theta(self) -> float:
        """What transformers takes for this architecture where no theta is named."""
        return defaults_of(self.model_type).theta

    @property
    def top_theta(self) -> Any:
        """theta outside the rope dicts, under this architecture's name; None where there is none."""
        return self._first("rope_theta", OLD_NAMES.get(self.model_type, ("rope_theta",))[0])

    @property
    def top_share(self) -> Any:
        """The rotated share outside the rope dicts, as transformers would take it; None for the whole head."""
        found = self._first("partial_rotary_factor", OLD_NAMES.get(self.model_type, ("", "partial_rotary_factor"))[1])
        return defaults_of(self.model_type).share if found is None else found

    @property
    def local_theta(self) -> float:
        """theta of the local layers of a MIXED architecture, where no dict of theirs says it."""
        if self.model_type in GEMMA3:
            return float(self.config.get("rope_local_base_freq") or 10_000.0)
        return float(self.default_theta if self.top_theta is None else self.top_theta)

    @property
    def scaling(self) -> dict[str, Any]:
        """``rope_scaling``, the older spelling; a copy, empty where it is null or absent."""
        return _dict(self.config.get("rope_scaling"))

    @property
    def parameters(self) -> dict[str, Any]:
        """``rope_parameters``, the newer spelling; a copy, empty where it is null or absent."""
        return _dict(self.config.get("rope_parameters"))

    def _first(self, *names: str) -> Any:
        return next((self.config[name] for name in names if self.config.get(name) is not None), None)


def load(path: Path) -> Given:
    """The folder, or the config.json itself.

    Raises:
        CheckpointError: it is not there, is not a JSON object, or is no transformer with attention heads.
    """
    file = path / "config.json" if path.is_dir() else path
    beside = file.parent / "tokenizer_config.json"
    tokenizer = _object(beside) if beside.is_file() else {}
    return from_config(_object(file), tokenizer, str(file))


def from_config(config: Mapping[str, Any], tokenizer: Mapping[str, Any] | None = None, name: str = "config") -> Given:
    """The same of what was read already.

    Raises:
        CheckpointError: no head size can be worked out.
    """
    text = config.get("text_config") or config.get("llm_config")
    part = isinstance(text, Mapping)
    inner = dict(text) if isinstance(text, Mapping) else dict(config)
    default = defaults_of(str(inner.get("model_type") or "").lower())
    head = _head(inner, default)
    if not head or head < 2:
        fix = "name a folder of a causal language model with rotary positions"
        raise CheckpointError(problem(name, "no head_dim and no hidden_size with num_attention_heads", "both", fix))
    longest = _whole(inner.get("max_position_embeddings")) or (default.max_length if part else None)
    length = _whole((tokenizer or {}).get("model_max_length"))
    return Given(inner, longest, head, length if length and length < 10**9 else None, part)


def _head(inner: Mapping[str, Any], default: Defaults) -> int | None:
    """Dimensions of a head that may be rotated: of latent attention (DeepSeek) the part that RoPE turns."""
    named = _whole(inner.get("qk_rope_head_dim")) or _whole(inner.get("head_dim")) or default.head_dim
    hidden = _whole(inner.get("hidden_size")) or default.hidden_size
    heads = _whole(inner.get("num_attention_heads")) or default.heads
    return named or (hidden // heads if hidden and heads else None)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a JSON object but a {type(found).__name__}")
    return found


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return int(value) if usable else None
