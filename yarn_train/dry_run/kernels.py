"""Which attention kernel a GPU elsewhere would run: this machine's packages and devices do not answer that."""

from __future__ import annotations

import torch

from ..config import Config
from ..model.attention import FLASH_ATTN, choose_kernel
from ..model.load import DTYPES
from ..model.primitives import primitive_for

FLASH = "flash_attention_2"
GPU = torch.device("cuda")


def gpu_primitives(requested: str, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels that ``model.attention`` may mean on a GPU, the one with flash-attn installed first.

    Raises:
        ConfigError: a kernel asked for by name computes in another dtype.
    """
    if dtype == torch.float32:  # what flash-attn refuses wherever it is installed
        return (choose_kernel(requested, GPU, dtype).primitive,)
    plain = primitive_for("sdpa", GPU.type, dtype)
    return {"sdpa": (plain,), FLASH: (FLASH,)}.get(requested, (FLASH, plain))


def kernel_line(cfg: Config) -> str:
    """Which kernel `cfg` runs on a GPU, with and without the flash-attn package."""
    found = gpu_primitives(cfg.model.attention, DTYPES[cfg.model.dtype])
    version = ".".join(map(str, FLASH_ATTN))
    if len(found) == 2:
        return f"auto: {FLASH} where flash-attn {version} or later is installed, else torch's SDPA, {found[1]} kernel"
    if found == (FLASH,):
        return f"{FLASH}: flash-attn {version} or later must be installed on every node"
    return f"{cfg.model.attention}: torch's SDPA, {found[0]} kernel, with or without flash-attn"
