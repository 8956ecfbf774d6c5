"""Whether host memory holds what a cell keeps there. A kernel that kills for memory may kill more than the cell."""

from __future__ import annotations

import math

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from yarn_train.config import Config
from yarn_train.plan.check import available_host_bytes
from yarn_train.plan.memory import kept_bytes
from yarn_train.plan.sizes import Sizes

GIB = 2**30


def available() -> float | None:
    """Bytes that this process may still take; None where that is not known."""
    found = available_host_bytes()
    return found if math.isfinite(found) else None


def needed(cfg: Config, base: PretrainedConfig) -> float:
    """Bytes of activations, and of AdamW's moments: torch rounds each pinned tensor up to a power of two."""
    found = kept_bytes(cfg, Sizes.of(base)) if cfg.memory.offloads else 0.0
    if cfg.engine.offload == "optimizer":
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(base).parameters()
        found += sum(2 * 2 ** math.ceil(math.log2(4 * parameter.numel())) for parameter in parameters)
    return found


def check(cfg: Config, base: PretrainedConfig) -> None:
    """Refuse what cannot fit.

    Raises:
        MemoryError: more is needed than there is; says how much.
    """
    need, room = needed(cfg, base), available()
    if room is not None and need > room:
        raise MemoryError(f"host memory: {need / GIB:.1f} GiB would be kept there and {room / GIB:.1f} are left")
