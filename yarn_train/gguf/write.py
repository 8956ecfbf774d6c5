"""Writes a GGUF: keys first, then tensor by tensor, so host memory holds one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .package import GGUFError, library
from .rope import BETA_FAST, BETA_SLOW, RopeKeys, keys_for
from .source import Source, open_source
from .vocabulary import write_vocabulary

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def write_gguf(folder: Path, out: Path, dtype: str = "f32") -> RopeKeys:
    """Write `folder` as `out`; norms and factors are float32 whatever `dtype` ("f32", "f16" or "bf16") says.

    Returns:
        The RoPE keys that were written.

    Raises:
        GGUFError: `out` exists, or llama.cpp could not compute the same model from a GGUF.
    """
    gguf = library()
    if out.exists():
        raise GGUFError(f"{out} exists; name a file that does not, nothing is overwritten")
    source = open_source(folder)
    table, attention = source.rotary_table()
    rope = keys_for(source.config.rope_parameters, source.arch, table.numpy(), attention)
    partial = out.with_name(out.name + ".partial")
    writer = gguf.GGUFWriter(None, source.arch)
    try:
        _keys(gguf, writer, source, rope, dtype)
        _rope_keys(gguf, writer, source, rope)
        write_vocabulary(writer, folder, source.config.vocab_size)
        _tensors(gguf, writer, source, rope, dtype, partial)
        partial.rename(out)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return rope


def _keys(gguf: Any, writer: Any, source: Source, rope: RopeKeys, dtype: str) -> None:
    config = source.config
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(source.folder.resolve().name)
    writer.add_file_type(int(gguf.LlamaFileType[kinds[dtype]]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _rope_keys(gguf: Any, writer: Any, source: Source, rope: RopeKeys) -> None:
    writer.add_rope_dimension_count(source.head_dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
    if rope.kind != "none":
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_length)
        writer.add_rope_scaling_finetuned(True)
        writer.add_rope_scaling_yarn_beta_fast(BETA_FAST)
        writer.add_rope_scaling_yarn_beta_slow(BETA_SLOW)
    if abs(rope.attn_factor - 1.0) > 1e-7:
        writer.add_rope_scaling_attn_factors(rope.attn_factor)


def _tensors(gguf: Any, writer: Any, source: Source, rope: RopeKeys, dtype: str, path: Path) -> None:
    named = list(_named(gguf, source))
    if rope.divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", rope.divisors.shape, np.dtype(np.float32), rope.divisors.nbytes)
    for _, name, shape in named:
        kind = _kind(shape, dtype)
        size = int(np.prod(shape)) * TORCH[kind].itemsize
        stored = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=stored)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if rope.divisors is not None:
        writer.write_tensor_data(rope.divisors)
    for ours, _, shape in named:
        writer.write_tensor_data(_as_numpy(source.tensor(ours), _kind(shape, dtype)))


def _named(gguf: Any, source: Source) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name in the folder, name in the GGUF, shape) of every tensor."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == source.arch)
    names = gguf.get_tensor_name_map(arch, source.config.num_hidden_layers)
    for name, shape in source.shapes():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise GGUFError(f"{name}: llama.cpp's {source.arch} has no such tensor")
        yield name, theirs, shape


def _kind(shape: tuple[int, ...], dtype: str) -> str:
    return "f32" if len(shape) == 1 else dtype


def _as_numpy(tensor: Tensor, kind: str) -> np.ndarray:
    tensor = tensor.to(TORCH[kind]).contiguous()
    return (tensor.view(torch.uint16) if kind == "bf16" else tensor).numpy()
