"""A Hugging Face folder as a GGUF needs it: its config, judged, and its tensors one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from .package import GGUFError

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
PERMUTED = frozenset({"llama"})  # rotate neighbours (2i, 2i+1); the others rotate halves, as Hugging Face does


@dataclass(frozen=True)
class Source:
    """A folder that can be said in GGUF; `files` says in which file each tensor lies."""

    folder: Path
    config: Any
    arch: str
    files: dict[str, Path]

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor that is written, without reading any."""
        for name, path in self.files.items():
            with safe_open(path, framework="pt") as opened:
                yield name, tuple(opened.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor as llama.cpp wants its rows; the file is open for this one only."""
        with safe_open(self.files[name], framework="pt") as opened:
            return _rows(name, opened.get_tensor(name), self)

    def rotary_table(self) -> tuple[Tensor, float]:
        """([rotary_dim/2] float32, factor of cos and sin) that transformers computes from the config."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        module = LlamaRotaryEmbedding(self.config)
        return module.inv_freq.float(), float(module.attention_scaling)


def open_source(folder: Path) -> Source:
    """Read and judge a folder; no weights are read.

    Raises:
        GGUFError: it is not a folder of safetensors, or has something that this export does not say.
    """
    if not (folder / "config.json").is_file():
        raise GGUFError(f"{folder}: no config.json; give a Hugging Face folder")
    config = AutoConfig.from_pretrained(folder)
    found = refusals(config)
    if found:
        raise GGUFError(f"{folder}: " + "; ".join(found))
    files = _files(folder)
    if config.tie_word_embeddings:  # llama.cpp takes the embedding where there is no output
        files.pop("lm_head.weight", None)
    return Source(folder, config, ARCHITECTURES[config.model_type], files)


def refusals(config: Any) -> list[str]:
    """Why this config cannot be written; empty when it can."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        return [f"model_type {kind} is not written: only {', '.join(ARCHITECTURES)} are verified against llama.cpp"]
    found = []
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    if window and used and window < config.max_position_embeddings:
        found.append(f"sliding_window {window}: llama.cpp's {ARCHITECTURES[kind]} attends to everything")
    if config.hidden_act != "silu":
        found.append(f"hidden_act {config.hidden_act}: llama.cpp has silu here")
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            found.append(f"{key}: not verified against llama.cpp")
    params = config.rope_parameters
    if "rope_theta" not in params:
        found.append("rope differs between kinds of layers")
    elif float(params.get("partial_rotary_factor") or 1.0) != 1.0:
        found.append("partial_rotary_factor: llama.cpp rotates whole heads here")
    return found


def _files(folder: Path) -> dict[str, Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        named = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in named.items()}
    if not single.is_file():
        raise GGUFError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
    with safe_open(single, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), single)


def _rows(name: str, tensor: Tensor, source: Source) -> Tensor:
    config = source.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return permuted(tensor, heads) if heads and source.arch in PERMUTED else tensor


def permuted(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head (all first halves of its pairs, then all second ones) with the two of each pair together."""
    rows = tensor.shape[0]
    halves = tensor.reshape(heads, 2, rows // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
