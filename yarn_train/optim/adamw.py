"""AdamW over a model's parameters, matrices and vectors in separate groups."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from ..config import OptimConfig


def build_adamw(module: nn.Module, cfg: OptimConfig) -> AdamW:
    """Fused AdamW; weight decay (0 in the paper) touches matrices only, never norms or biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps, fused=True)
