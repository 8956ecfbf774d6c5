"""The one ordered list of transforms between a loaded model and a trainable one."""

from __future__ import annotations

import shutil

from ..config import Config
from ..dist.mesh import Mesh
from ..errors import ConfigError, problem
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES
from . import activation, fsdp
from .compiled import compile_blocks
from .offload import Mover
from .tiled_mlp import tile_mlps


def parallelize(module: CausalLM, cfg: Config, mesh: Mesh) -> list[str]:
    """Apply MLP tiling, compilation, recomputation and FSDP2 sharding, in this order; returns what was done, in lines.

    The order matters: a block's graph is compiled inside of its recomputation, whose stores and copies are no part of
    a graph, and sharded outside of both, so that gathering parameters stays out of the compiled graph. DeepSpeed shards
    when its engine is built, after this.
    """
    done = []
    blocks = list(module.blocks)
    if cfg.memory.tiled_mlp:
        done += tile_mlps(blocks, module.model.config.hidden_size)
    if cfg.compile.enabled:
        require_compiler(mesh.device_type)
        done += compile_blocks(blocks)
    done += activation.apply(blocks, cfg.memory.recompute, Mover() if cfg.memory.offloads else None)
    if cfg.engine.name == "fsdp2":
        fsdp.shard(module, mesh.sharding, DTYPES[cfg.model.dtype], cfg.engine)
    done.append(_sharding_line(len(blocks), cfg, mesh))
    return done


def _sharding_line(blocks: int, cfg: Config, mesh: Mesh) -> str:
    ranks = mesh.sharding.size(-1)
    copies = f", {mesh.replicate} copies (HSDP)" if mesh.replicate > 1 else ""
    master = "bfloat16" if cfg.optim.state == "bfloat16" else "fp32"
    if cfg.engine.name == "deepspeed":
        sharded = {0: "nothing", 1: "optimizer state", 2: "optimizer state and gradients", 3: "everything"}
        what = f"DeepSpeed ZeRO-{cfg.engine.stage}: {sharded[cfg.engine.stage]} sharded over {ranks} rank(s)"
    else:
        what = f"FSDP2: {blocks} blocks + root over {ranks} rank(s){copies}"
    offload = {"none": "", "optimizer": ", optimizer state in host memory", "all": ", parameters in host memory"}
    added = ", bfloat16 over micro-batches" if cfg.optim.state == "bfloat16" else ""
    compute = f"{master} master weights, {cfg.model.dtype} compute, fp32 gradient sum{added}"
    return f"{what}, {compute}{offload[cfg.engine.offload]}"


def require_compiler(device_type: str) -> None:
    """torch.compile on CPU needs a C++ compiler; say so before the first step fails deep inside of it."""
    if device_type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ConfigError(
            problem("compile.enabled", True, "a C++ compiler on PATH", "install g++ or set compile.enabled=false")
        )
