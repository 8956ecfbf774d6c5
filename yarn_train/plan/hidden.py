"""What attention operators take and send inside, where fake tensors show only their results.

Follows model/primitives.py and parallel/ring.py on a GPU; every other kernel's memory is seen by the ledger itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..parallel.ulysses import process_group


def hidden_bytes(operator: str, arguments: Sequence[Any]) -> tuple[int, int]:
    """(bytes taken while the operator runs and given back, bytes sent to another rank)."""
    costs = _COSTS.get(operator)
    return costs(arguments) if costs else (0, 0)


def _attention_backward(arguments: Sequence[Any]) -> tuple[int, int]:
    """The kernel adds up query gradients in float32, and expands grouped keys' and values' gradients."""
    return _kernel_backward(arguments[1], arguments[2]), 0


def _kernel_backward(query: Any, key: Any) -> int:
    grouped = 2 * query.nbytes if key.shape[1] != query.shape[1] else 0
    return int(4 * query.numel() + grouped)


def _ring(arguments: Sequence[Any]) -> tuple[int, int]:
    """The merged output and the part that is added in float32, that part as the kernel gave it; two shards of K, V."""
    query, key = arguments[0], arguments[1]
    ranks = process_group(arguments[6]).size()
    shard = 2 * key.nbytes
    return 8 * query.numel() + query.nbytes + 2 * shard, (ranks - 1) * shard


def _ring_backward(arguments: Sequence[Any]) -> tuple[int, int]:
    """float32 dQ; two shards of K, V; float32 dK, dV: four shards at a pass, or three and a kernel call."""
    query, key = arguments[1], arguments[2]
    ranks = process_group(arguments[9]).size()
    shard, sums = 2 * key.nbytes, 2 * 4 * key.numel()
    call = _kernel_backward(query, key) + query.nbytes + shard
    return 4 * query.numel() + 2 * shard + max(4 * sums, 3 * sums + call), (ranks - 1) * shard + ranks * sums


def _all_to_all(arguments: Sequence[Any]) -> tuple[int, int]:
    return 0, arguments[0].nbytes


_COSTS = {
    "yarn_train::attention_backward": _attention_backward,
    "yarn_train::ring_attention": _ring,
    "yarn_train::ring_attention_backward": _ring_backward,
    "yarn_train::all_to_all": _all_to_all,
}
