"""The FSDP2 engine: also the single-process and the CPU engine, so that there is one code path to trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from ..config import Config
from ..dist.mesh import Mesh
from ..model.causal_lm import CausalLM
from ..model.weights import WeightFiles, fill, materialize
from ..optim.adamw import build_adamw, set_lr
from ..optim.state import MOMENTS, counts, materialize_state, set_counts
from .finite import agreed, all_finite, is_finite

PREFIX = "model."  # CausalLM holds the transformers model under this name


class FSDP2Engine:
    """`module` must already be sharded (see ``parallel.plan``); see :class:`engine.base.Engine` for the methods."""

    def __init__(self, module: CausalLM, cfg: Config, mesh: Mesh):
        self.module = module
        home = "cpu" if cfg.engine.offload == "all" else mesh.device_type
        materialize(module, torch.device(home))
        self.optimizer = build_adamw(module, cfg.optim, host_moments=cfg.engine.offload == "optimizer")
        materialize_state(self.optimizer)
        self.max_norm = cfg.optim.grad_clip
        self.shards = mesh.sharding.get_group(mesh.sharding.ndim - 1)  # the ranks of one copy
        self.copies = mesh.sharding.get_group(0) if mesh.sharding.ndim > 1 else None  # those with the same shard

    def read_weights(self, files: WeightFiles) -> None:
        fill(self.module.model, files)

    def backward(self, loss_sum: torch.Tensor, global_tokens: torch.Tensor) -> None:
        (loss_sum / global_tokens).backward()

    def gradient_norm(self) -> torch.Tensor:
        norm = global_norm(self._gradients(), self.shards)
        return norm if self.copies is None else agreed(norm, self.copies)

    def step(self, lr: float, norm: torch.Tensor | None = None) -> torch.Tensor:
        found = self.gradient_norm() if norm is None else norm
        if norm is not None or is_finite(found):
            torch._foreach_mul_(self._gradients(), (self.max_norm / (found + 1e-6)).clamp(max=1.0))
            set_lr(self.optimizer, lr)
            self.optimizer.step()
        self.skip()
        return found

    def skip(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def weights_finite(self) -> bool:
        return all_finite(local(p.detach()) for p in self._parameters().values())

    def state_dict(self) -> dict[str, Any]:
        parameters = self._parameters()
        states = {name: self.optimizer.state[p] for name, p in parameters.items() if p.requires_grad}
        return {
            "weights": {name: p.detach() for name, p in parameters.items()},
            **{key: {name: state[key] for name, state in states.items()} for key in MOMENTS},
            "step": counts(self._states()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_counts(self._states(), state["step"])

    def full_weights(self) -> dict[str, torch.Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.module, options=options)
        return {n.removeprefix(PREFIX): tensor for n, tensor in weights.items() if isinstance(tensor, torch.Tensor)}

    def _gradients(self) -> list[torch.Tensor]:
        """This rank's shards of them."""
        return [local(p.grad) for p in self.module.parameters() if p.grad is not None]

    def _parameters(self) -> dict[str, nn.Parameter]:
        """This rank's shards by name, a tied parameter once; state_dict() frees what FSDP2 still holds gathered."""
        first: dict[int, str] = {}
        saved = self.module.state_dict(keep_vars=True)
        found = {name: p for name, p in saved.items() if isinstance(p, nn.Parameter)}
        return {name: p for name, p in found.items() if first.setdefault(id(p), name) == name}

    def _states(self) -> list[dict[str, torch.Tensor]]:
        """The optimizer's, in the order of their parameters' names."""
        return [self.optimizer.state[p] for _, p in sorted(self._parameters().items()) if p.requires_grad]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def global_norm(shards: Sequence[torch.Tensor], group: dist.ProcessGroup) -> torch.Tensor:
    """L2 norm, fp32 scalar, of tensors whose `shards` the ranks of `group` hold; collective.

    On the CPU each shard is summed in fp64: torch's fp32 norm there adds up in one long row and reads 0.3 % too little
    at 45 M elements. On GPUs it adds up in a tree.
    """
    squares = [
        torch.linalg.vector_norm(s, dtype=torch.float64 if s.device.type == "cpu" else torch.float32).double().square()
        for s in shards
    ]
    total = torch.stack(squares).sum()
    dist.all_reduce(total, group=group)
    return total.sqrt().float()
