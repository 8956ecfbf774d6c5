"""What made an evaluation's rows beside its own options: the weights of each model, dtype and attention kernel."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import cached_file

from .. import model_revision
from ..config import Config
from ..model.flops import head_dim
from ..model.load import DTYPES
from ..model.primitives import primitive_for
from ..model.registry import cached_kernel, choose_kernel
from .variants import Variant

WEIGHTS = ("*.safetensors", "*.bin")
TEXTS = ("config.json", "*.py")  # small, and what decides how weights are read


def options_of(cfg: Config, device: torch.device, base: PretrainedConfig) -> dict[str, Any]:
    """Settings that decide the numbers of every model alike: dtype and the kernels that run here."""
    dtype = DTYPES[cfg.model.dtype]
    kernel = choose_kernel(cfg.model.attention, device, dtype, head_dim(base))
    cached = primitive_for(cached_kernel(kernel.name), device.type, dtype)
    others = [] if cached == kernel.primitive else [f"generation by {cached}"]
    return {"dtype": cfg.model.dtype, "attention": [kernel.implementation, kernel.primitive, *others]}


def marks(variants: Iterable[Variant]) -> dict[str, str]:
    """A mark per label, which changes with the model's weights, its config and the RoPE it is read with.

    Weights that are gone have no mark: nothing says that rows are of others.
    """
    return {variant.label: found for variant in variants if (found := mark(variant))}


def mark(variant: Variant) -> str | None:
    """The mark of one model: of a folder its files, of a hub id the commit; None where it is not within reach.

    Weights count by name, size and time of modification, because reading them would take as long as loading them. The
    folder's own name does not count: a run that was moved with its times is still the same.
    """
    rope = dataclasses.asdict(variant.rope) if variant.rope is not None else None
    try:
        files = _files(variant.weights)
    except (OSError, ValueError):  # no such folder, and no id of the hub
        return None
    told = json.dumps([files, rope], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _files(weights: str) -> list[Any]:
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        config = cached_file(
            weights, "config.json", revision=model_revision.of(weights), _raise_exceptions_for_missing_entries=False
        )
        return [weights, Path(config).parent.name if config else None]  # snapshots/<commit>
    large = [(path, path.stat()) for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    small = [path for pattern in TEXTS for path in sorted(folder.glob(pattern))]
    return [
        *([path.name, stat.st_size, stat.st_mtime_ns] for path, stat in large),
        *([path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in small),
    ]
