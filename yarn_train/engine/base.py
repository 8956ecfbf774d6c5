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

    def gradient_norm(self) -> torch.Tensor | None:
        """L2 norm of the gradients over all ranks, fp32 scalar, the same on each; no host waits for it.

        Not finite where any rank's gradients are not. None where the engine learns it in its :meth:`step` only.
        """

    def step(self, lr: float, norm: torch.Tensor | None = None) -> torch.Tensor:
        """Clip by the global norm, update with learning rate `lr`, zero gradients; returns the norm before clipping.

        Where that norm is not finite, nothing is updated and the optimizer counts no step.

        Args:
            norm: what :meth:`gradient_norm` gave, which the caller has found finite: then no host waits for the device.
        """

    def skip(self) -> None:
        """Drop the gradients; nothing is updated and the optimizer counts no step."""

    def weights_finite(self) -> bool:
        """Whether no weight that this rank keeps is infinite or NaN; not collective."""

    def state_dict(self) -> dict[str, Any]:
        """What this rank keeps of weights and optimizer, for the checkpoint to save, and to load into in place.

        The same in every engine: `weights`, `exp_avg` and `exp_avg_sq`, each by the parameter's name in the module (a
        tied one once, under its first name), and `step`, int64: AdamW's count of every parameter, by sorted name.
        Persistent buffers are not in it: training leaves them as they are built.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was loaded into :meth:`state_dict`'s tensors.

        Raises:
            CheckpointError: this engine cannot keep it.
        """

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Complete fp32 weights on the CPU of rank 0 (an empty dict elsewhere), named as transformers names them."""
