"""GPUs: whether there are enough of them, one for each worker, and whether they compute in the dtype asked for."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..config import Config, LaunchConfig
from ..dist import environment
from ..errors import ConfigError, problem
from ..launch.counts import check_launcher
from ..model.availability import AMPERE
from .ranks import workers


def worker_problems(launch: LaunchConfig) -> list[str]:
    """Too many workers for this machine's GPUs, whoever starts them."""
    found = environment.launcher_problems()
    if found:
        return found
    here, gpus = environment.local_world_size(), torch.cuda.device_count()
    if environment.under_launcher():
        if 0 < gpus < here:
            got = f"{here} workers on this machine for {visible(gpus)}"
            fix = f"start torchrun with --nproc-per-node={gpus}: two workers cannot share a GPU"
            found.append(problem("LOCAL_WORLD_SIZE", got, f"<= {gpus}", fix))
        elif 0 < gpus <= environment.local_rank():
            fix = "let every worker see all GPUs of its machine, and set LOCAL_RANK to its number among them"
            got = f"{environment.local_rank()} with {visible(gpus)}"
            found.append(problem("LOCAL_RANK", got, f"< {gpus}", fix))
    if launch.nproc_per_node is not None and not launch.dry_run:
        try:
            check_launcher(launch) if environment.under_launcher() else workers(launch)
        except ConfigError as error:
            found += error.problems
    return found


def visible(gpus: int) -> str:
    """The GPUs that torch sees, and why not more, in words."""
    chosen = environment.visible_gpus()
    because = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={','.join(chosen)})"
    return f"{gpus} visible GPU{'s' if gpus != 1 else ''}{because}"


def dtype_problems(configs: Iterable[Config]) -> list[str]:
    """bfloat16 on a GPU that has no instructions for it: torch emulates it there, many times slower than float32."""
    if all(cfg.model.dtype != "bfloat16" for cfg in configs) or not torch.cuda.is_available():
        return []
    number = environment.local_rank() if environment.local_rank() < torch.cuda.device_count() else 0
    capability = torch.cuda.get_device_capability(number)
    if capability >= AMPERE:
        return []
    name = f"{torch.cuda.get_device_name(number)} of compute capability {capability[0]}.{capability[1]}"
    allowed = f"float32 on {name}, which does not compute in bfloat16 (8.0 and later do)"
    return [problem("model.dtype", "bfloat16", allowed, "set model.dtype=float32")]
