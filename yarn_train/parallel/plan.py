"""The one ordered list of transforms between a loaded model and a trainable one."""

from __future__ import annotations

import shutil

from torch.distributed.device_mesh import DeviceMesh

from ..config import Config
from ..errors import ConfigError, problem
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES
from . import fsdp
from .activation import recompute_blocks


def parallelize(module: CausalLM, cfg: Config, mesh: DeviceMesh) -> list[str]:
    """Apply activation checkpointing, compilation and sharding, in this order; returns what was done, a line each.

    The order matters: a block is compiled with its recomputation inside, and sharded outside of both, so that
    gathering parameters stays out of the compiled graph.
    """
    done = []
    if cfg.memory.activation == "full":
        recompute_blocks(module.blocks)
        done.append(f"activation checkpointing: {len(module.blocks)} blocks recomputed in backward")
    if cfg.compile.enabled:
        require_compiler(mesh.device_type)
        for block in module.blocks:
            block.compile()
        done.append(f"torch.compile: {len(module.blocks)} blocks, one graph")
    fsdp.shard(module, mesh, DTYPES[cfg.model.dtype])
    done.append(
        f"FSDP2: {len(module.blocks)} blocks + root over {mesh.size()} rank(s), fp32 master weights, "
        f"{cfg.model.dtype} compute, fp32 gradient sum"
    )
    return done


def require_compiler(device_type: str) -> None:
    """torch.compile on CPU needs a C++ compiler; say so before the first step fails deep inside of it."""
    if device_type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(
            problem("compile.enabled", True, "a C++ compiler on PATH", "install g++ or set compile.enabled=false")
        )
