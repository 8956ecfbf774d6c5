"""The model folders that all trainers load: the same random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from bench.gpu.shapes import SHAPES

ORIGINAL = 8192  # max_position_embeddings of the base that YaRN extends
FILE_BYTES = 4 * 2**30


def config(name: str) -> LlamaConfig:
    """The architecture of `name`, RoPE unscaled."""
    return LlamaConfig(**SHAPES[name], max_position_embeddings=ORIGINAL, use_cache=False)


def ensure_model(folder: Path, name: str, device: torch.device) -> Path:
    """A Hugging Face folder of `name` with seeded random weights in bfloat16, written at the first call.

    Matrices are normal with a deviation of 0.02, norms are 1. Drawn on `device`, because a CPU draws from one thread.
    """
    place = folder / name
    if place.exists():
        return place
    base = config(name)
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(base)
    unfinished = folder / f".{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    base.save_pretrained(unfinished)
    _write_weights(skeleton, unfinished, device)
    unfinished.rename(place)
    return place


def _write_weights(skeleton: LlamaForCausalLM, folder: Path, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    files: list[dict[str, torch.Tensor]] = [{}]
    room = FILE_BYTES
    for key, parameter in skeleton.named_parameters():  # a tied one once
        drawn = torch.ones(parameter.shape, device=device)
        if parameter.ndim > 1:
            drawn.normal_(0.0, 0.02, generator=generator)
        tensor = drawn.to(torch.bfloat16).cpu()
        if tensor.nbytes > room and files[-1]:
            files.append({})
            room = FILE_BYTES
        room -= tensor.nbytes
        files[-1][key] = tensor
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors", {"format": "pt"})
        return
    index: dict[str, str] = {}
    for number, tensors in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    total = sum(t.nbytes for tensors in files for t in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text)
