"""What a recomputed block keeps of its attention: the hand-over between attention kernels and the recompute policy.

A kernel computes (output, log-sum-exp) through :func:`through_store`. While a block's first forward runs, the active
store records them; while the block is recomputed, the store gives them back and the kernel does not run again. The
store is per thread, because autograd runs a recomputation on a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

AttentionResult = tuple[Tensor, Tensor]  # output and its log-sum-exp


class Store(Protocol):
    """Records the attention results of one block, or gives them back in the same order."""

    def through(self, compute: Callable[[], AttentionResult]) -> AttentionResult:
        """`compute()`, recorded; or what was recorded for this call, without computing."""


_thread = threading.local()


@contextmanager
def active_store(store: Store) -> Iterator[None]:
    """Attention inside of this context goes through `store`."""
    before = getattr(_thread, "store", None)
    _thread.store = store
    try:
        yield
    finally:
        _thread.store = before


def through_store(compute: Callable[[], AttentionResult]) -> AttentionResult:
    """What every attention kernel's forward calls, with no gradient tracking; see the module's text."""
    store = getattr(_thread, "store", None)
    return compute() if store is None else store.through(compute)
