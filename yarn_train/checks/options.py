"""What options ask of this machine's packages, without a model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PretrainedConfig

from ..config import Config
from ..dry_run.kernels import gpu_primitive
from ..engine.deepspeed import missing as deepspeed_missing
from ..engine.deepspeed_settings import unsupported as deepspeed_unsupported
from ..errors import ConfigError
from ..model import adapters
from ..model.flops import head_dim
from ..model.load import DTYPES
from ..model.registry import choose_kernel
from ..optim.adamw import missing as optim_missing


def kernel(
    cfg: Config, device: torch.device, elsewhere: bool, base: PretrainedConfig | None = None
) -> tuple[str | None, list[str]]:
    """(name of the attention kernel that runs, problems).

    Args:
        elsewhere: the run is for other machines, whose packages nobody knows.
        base: the config of a language model, where it is known.
    """
    dtype, width = DTYPES[cfg.model.dtype], head_dim(base) if base is not None else None
    try:
        if elsewhere:
            return gpu_primitive(cfg.model.attention, dtype), []
        return choose_kernel(cfg.model.attention, device, dtype, width).primitive, []
    except ConfigError as error:
        return None, error.problems


def engine_problems(cfg: Config) -> list[str]:
    """What DeepSpeed cannot do, whether or not it is installed."""
    return deepspeed_unsupported(cfg) if cfg.engine.name == "deepspeed" else []


def missing_packages(cfg: Config) -> Iterable[str]:
    """Packages that the options need and this machine lacks."""
    yield from optim_missing(cfg.optim)
    yield from adapters.missing(cfg.adapter)
    if cfg.engine.name == "deepspeed":
        yield from deepspeed_missing(cfg)
