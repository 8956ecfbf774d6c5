"""The FSDP2 engine: also the single-process and the CPU engine, so that there is one code path to trust."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from ..config import Config
from ..dist.mesh import Mesh
from ..model.causal_lm import CausalLM
from ..model.weights import WeightFiles, fill, materialize
from ..optim.adamw import build_adamw, set_lr

PREFIX = "model."  # CausalLM holds the transformers model under this name


class FSDP2Engine:
    """`module` must already be sharded (see ``parallel.plan``); see :class:`engine.base.Engine` for the methods."""

    def __init__(self, module: CausalLM, cfg: Config, mesh: Mesh):
        self.module = module
        home = "cpu" if cfg.engine.offload == "all" else mesh.device_type
        materialize(module, torch.device(home))
        self.optimizer = build_adamw(module, cfg.optim, host_moments=cfg.engine.offload == "optimizer")
        self.max_norm = cfg.optim.grad_clip

    def read_weights(self, files: WeightFiles) -> None:
        fill(self.module.model, files)

    def backward(self, loss_sum: torch.Tensor, global_tokens: torch.Tensor) -> None:
        (loss_sum / global_tokens).backward()

    def step(self, lr: float) -> torch.Tensor:
        norm = clip_grad_norm_(self.module.parameters(), self.max_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.module, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.module, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )

    def full_weights(self) -> dict[str, torch.Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.module, options=options)
        return {n.removeprefix(PREFIX): tensor for n, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
