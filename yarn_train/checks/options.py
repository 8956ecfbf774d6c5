"""What options ask of this machine's packages, without a model."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..config import Config
from ..dry_run.kernels import gpu_primitives
from ..engine.deepspeed import missing as deepspeed_missing
from ..engine.deepspeed_settings import unsupported as deepspeed_unsupported
from ..errors import ConfigError
from ..model.attention import choose_kernel
from ..model.load import DTYPES
from ..optim.adamw import missing as optim_missing


def kernels(cfg: Config, device: torch.device, elsewhere: bool) -> tuple[tuple[str, ...], list[str]]:
    """(names of the attention kernels that may run, problems).

    Args:
        elsewhere: the run is for other machines, whose packages nobody knows.
    """
    dtype = DTYPES[cfg.model.dtype]
    try:
        if elsewhere:
            return gpu_primitives(cfg.model.attention, dtype), []
        return (choose_kernel(cfg.model.attention, device, dtype).primitive,), []
    except ConfigError as error:
        return (), error.problems


def engine_problems(cfg: Config) -> list[str]:
    """What DeepSpeed cannot do, whether or not it is installed."""
    return deepspeed_unsupported(cfg) if cfg.engine.name == "deepspeed" else []


def missing_packages(cfg: Config) -> Iterable[str]:
    """Packages that the options need and this machine lacks."""
    yield from optim_missing(cfg.optim)
    if cfg.engine.name == "deepspeed":
        yield from deepspeed_missing(cfg)
