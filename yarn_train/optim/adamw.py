"""AdamW over a model's parameters, matrices and vectors in separate groups, its state in one of several places."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ..config import OptimConfig
from ..errors import problem
from .host_moments import HostMomentsAdamW


def build_adamw(module: nn.Module, cfg: OptimConfig, host_moments: bool = False) -> Optimizer:
    """AdamW with its state as `cfg.state` says, or its moments in host memory; set its rate with :func:`set_lr`."""
    groups = parameter_groups(module, cfg)
    kwargs: dict[str, Any] = {"lr": cfg.lr, "betas": (cfg.betas[0], cfg.betas[1]), "eps": cfg.eps}
    if cfg.state == "8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(groups, **kwargs)
    if cfg.state == "bfloat16":
        from torchao.optim import _AdamW

        return _AdamW(groups, bf16_stochastic_round=True, **kwargs)
    if host_moments:
        return HostMomentsAdamW(groups, **kwargs)
    return AdamW(groups, fused=True, **kwargs)


def parameter_groups(module: nn.Module, cfg: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay (0 in the paper) touches matrices only, never norms or biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every group's learning rate; compiled optimizers keep it in a tensor, which must stay the same one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def missing(cfg: OptimConfig) -> list[str]:
    """Problems of an optimizer state whose library is not installed."""
    if cfg.state == "float32" or importlib.util.find_spec("torchao") is not None:
        return []
    fix = "pip install 'yarn-train[lowbit]', or optim.state=float32"
    return [problem("optim.state", cfg.state, "float32 without the torchao package", fix)]
