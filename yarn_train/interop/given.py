"""A Hugging Face folder as it is judged: config.json and what the tokenizer says, nothing computed yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, problem

# Architectures whose older config.json names theta and the rotated share differently.
OLD_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}
# What transformers takes where a config names no theta; every other architecture of ours: 10,000.
DEFAULT_THETA = {
    "mixtral": 1e6,
    "gemma3_text": 1e6,
    "gemma3": 1e6,
    "phimoe": 1e6,
    "qwen2_vl": 1e6,
    "qwen2_5_vl": 1e6,
    "cohere": 5e5,
    "olmo3": 5e5,
    "flex_olmo": 5e5,
    "bitnet": 5e5,
    "llama4_text": 5e5,
    "smollm3": 2e6,
    "gpt_oss": 1.5e5,
    "helium": 1e5,
    "minimax": 1e6,
    "minimax_m2": 5e6,
    "apertus": 1.2e7,
}
DEFAULT_SHARE = {"gpt_neox": 0.25, "phi": 0.5, "stablelm": 0.25, "persimmon": 0.5}
GEMMA3 = ("gemma3_text", "gemma3")


@dataclass(frozen=True)
class Given:
    """What a folder says.

    Attributes:
        config: the (text) config as it stands in the file.
        max_length: max_position_embeddings in tokens, None where the file has none.
        head_dim: dimensions of a head.
        tokenizer_length: model_max_length of tokenizer_config.json in tokens; None where it says none.
    """

    config: Mapping[str, Any]
    max_length: int | None
    head_dim: int
    tokenizer_length: int | None = None

    @property
    def model_type(self) -> str:
        """``model_type``, lower case; empty where the file has none."""
        return str(self.config.get("model_type") or "").lower()

    @property
    def default_theta(self) -> float:
        """What transformers takes for this architecture where no theta is named."""
        return DEFAULT_THETA.get(self.model_type, 10_000.0)

    @property
    def top_theta(self) -> Any:
        """theta outside the rope dicts, under this architecture's name; None where there is none."""
        return self._first("rope_theta", OLD_NAMES.get(self.model_type, ("rope_theta",))[0])

    @property
    def top_share(self) -> Any:
        """The rotated share outside the rope dicts, as transformers would take it; None for the whole head."""
        found = self._first("partial_rotary_factor", OLD_NAMES.get(self.model_type, ("", "partial_rotary_factor"))[1])
        return DEFAULT_SHARE.get(self.model_type) if found is None else found

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
    inner = dict(text) if isinstance(text, Mapping) else dict(config)
    head, hidden, heads = (_whole(inner.get(key)) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if head is None and hidden and heads:
        head = hidden // heads
    if not head or head < 2:
        fix = "name a folder of a causal language model with rotary positions"
        raise CheckpointError(problem(name, "no head_dim and no hidden_size with num_attention_heads", "both", fix))
    length = _whole((tokenizer or {}).get("model_max_length"))
    return Given(
        inner, _whole(inner.get("max_position_embeddings")), head, length if length and length < 10**9 else None
    )


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
