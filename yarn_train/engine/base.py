"""What the training loop asks of an engine, whatever shards the model."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..model.causal_lm import CausalLM
from ..model.weights import WeightFiles


class Engine(Protocol):
    """A sharded model with its optimizer. All methods are collective: every rank calls them in the same order.

    An engine is made of a transformed module whose parameters hold the weights already or lie on meta (then
    :meth:`read_weights` comes first).
    """

    module: CausalLM

    def read_weights(self, files: WeightFiles) -> None:
        """Fill a module that was given without memory; each rank reads only what it holds."""

    def backward(self, loss_sum: torch.Tensor, global_tokens: torch.Tensor) -> None:
        """Add this micro-batch's gradients of loss_sum / global_tokens."""

    def step(self, lr: float) -> torch.Tensor:
        """Clip by the global norm, update with learning rate `lr`, zero gradients; returns the norm before clipping."""

    def state_dict(self) -> dict[str, Any]:
        """Sharded model and optimizer state, in the form torch.distributed.checkpoint saves and loads in place."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what torch.distributed.checkpoint loaded into :meth:`state_dict`'s tensors."""

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Complete fp32 weights on the CPU of rank 0 (an empty dict elsewhere), named as transformers names them."""
