"""Which activations are kept for backward, which are computed again, and where the kept ones live."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ..model.kept import AttentionResult, Store, active_store
from .offload import Layer, Mover

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def apply(blocks: nn.ModuleList | Sequence[nn.Module], recompute: str, mover: Mover | None = None) -> list[str]:
    """Make each block keep what `recompute` says of its forward and compute the rest again in backward.

    Replaces ``forward``, not the module: parameter names stay, and hooks of a sharding engine stay outside of the
    recomputation. Without gradients (evaluation) a block runs as it is.

    Args:
        recompute: none | full: keep each block's input only | attention: and every attention kernel's output and
            log-sum-exp, so that the quadratic part never runs twice.
        mover: moves what is kept to host memory; None leaves it on the device.

    Returns:
        What was done, a line each.
    """
    if recompute == "none":
        return []
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward, recompute == "attention", mover)
    kept = "inputs and attention outputs" if recompute == "attention" else "inputs"
    place = "host memory" if mover else "device memory"
    return [f"recomputation: {len(blocks)} blocks run again in backward; their {kept} are kept in {place}"]


def _recomputed(
    forward: Callable[..., Any],
    attention: bool,
    mover: Mover | None,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`forward` under a checkpoint that saves `hidden_states`; the rest is shared by all blocks and stays as it is."""
    if not torch.is_grad_enabled():
        return forward(hidden_states, *args, **kwargs)
    layer = mover.open() if mover else None

    def run(hidden_states: Tensor) -> Any:
        return forward(hidden_states, *args, **kwargs)

    options: dict[str, Any] = {"context_fn": functools.partial(_contexts, layer)} if attention else {}
    # These hooks see the checkpoint's own input only: inside of it, its hooks are the ones that count.
    with saved_tensors_hooks(layer.pack, layer.unpack) if layer else nullcontext():
        return checkpoint(run, hidden_states, use_reentrant=False, **options)


def _contexts(layer: Layer | None) -> Contexts:
    """What surrounds a block's first forward and its recomputation."""
    kept = KeptAttention(layer)
    return Active(Recording(kept)), Active(Replaying(kept))


class Active(AbstractContextManager[None]):
    """``active_store`` that can be entered again: a kept graph is recomputed in each backward."""

    def __init__(self, store: Store):
        self._store = store

    def __enter__(self) -> None:
        self._inside = active_store(self._store)
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)


class KeptAttention:
    """(output, log-sum-exp) of one block's attention calls in one forward, in call order; each is given back once.

    It belongs to one forward of one block: micro-batches in flight cannot meet in it, and what a failed step left goes
    with that step's graph.
    """

    def __init__(self, layer: Layer | None):
        self._layer = layer
        self._results: deque[tuple[Any, Any]] = deque()

    def put(self, result: AttentionResult) -> None:
        """Keep one call's results, without their graph."""
        out, lse = result
        self._results.append((self._pack(out), self._pack(lse)))

    def pop(self) -> AttentionResult:
        """The results of the next call; no longer held here."""
        if not self._results:
            raise RuntimeError("a recomputed block called attention more often than its forward, or ran backward twice")
        out, lse = self._results.popleft()
        return self._unpack(out), self._unpack(lse)

    def _pack(self, tensor: Tensor) -> Any:
        return self._layer.pack(tensor) if self._layer else tensor.detach()

    def _unpack(self, packed: Any) -> Tensor:
        tensor: Tensor = self._layer.unpack(packed) if self._layer else packed
        return tensor


@dataclass(frozen=True)
class Recording:
    """The store of a block's first forward (see ``model.kept.Store``)."""

    kept: KeptAttention

    def through(self, compute: Callable[[], AttentionResult]) -> AttentionResult:
        """`compute()`, kept."""
        result = compute()
        self.kept.put(result)
        return result


@dataclass(frozen=True)
class Replaying:
    """The store of a block's recomputation."""

    kept: KeptAttention

    def through(self, compute: Callable[[], AttentionResult]) -> AttentionResult:
        """What was kept of this call."""
        return self.kept.pop()
