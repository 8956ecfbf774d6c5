"""Ring attention as one operator: keys and values travel around, every rank computes what its queries may see of them.

The transfer of the next shard runs while the present one is computed. Results are merged by log-sum-exp in float32;
gradients of keys and values travel with their shard, in float32. Only rectangles below the diagonal and inside of
documents are computed, so the zigzag layout gives every rank one kernel call of equal size per step.

Besides its results the operator holds, per token of the shard and with h = Hkv * D: two shards of keys and values
(4h elements) and the float32 output in forward; the two shards, float32 dq, and two shards of float32 gradients (4h) in
backward. Neither grows with the length of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, library

from ..model import kernels
from ..model.attention import detached, fake_result
from ..model.documents import apart, end_to_end, from_table, joined
from ..model.kept import through_store
from ..model.merge import Merger, accumulator, seq_major
from ..model.spans import Documents, Rectangle, rectangles, stacked
from .shard import Layout
from .ulysses import process_group

KEYS_VALUES, GRADIENTS = 0, 1  # message tags


@dataclass(frozen=True)
class Ring:
    """A process group whose ranks pass tensors to their next one."""

    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        """Ranks in the ring."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This rank's place in it."""
        return self.group.rank()

    def start_pass(self, sent: Tensor, received: Tensor, tag: int) -> list[dist.Work]:
        """Start to send to the next rank and to receive from the one before; neither may be touched before a wait."""
        if self.size == 1:
            received.copy_(sent)
            return []
        following, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        return dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent, group=self.group, group_peer=following, tag=tag),
                dist.P2POp(dist.irecv, received, group=self.group, group_peer=before, tag=tag),
            ]
        )

    def shards(self, k: Tensor, v: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(source rank, its keys, its values) for every rank, own first; the next arrive while these are used.

        A shard is valid until the next one is asked for.
        """
        present = torch.stack([k.transpose(1, 2), v.transpose(1, 2)])
        coming = torch.empty_like(present) if self.size > 1 else present
        for step in range(self.size):
            last = step == self.size - 1
            transfer = [] if last else self.start_pass(present, coming, KEYS_VALUES)
            yield (self.rank - step) % self.size, present[0].transpose(1, 2), present[1].transpose(1, 2)
            wait(transfer)
            present, coming = coming, present


def wait(transfers: list[dist.Work]) -> None:
    """Wait (on CUDA: let the current stream wait) until all transfers are done."""
    for transfer in transfers:
        transfer.wait()


def spans_for(rank: int, source: int, ring: int, local: int, documents: Documents) -> list[Rectangle]:
    """What the queries of `rank` see of the keys of `source`; each rank holds `local` tokens in zigzag order.

    Args:
        documents: per sequence, where its documents start; the sequences lie end to end.
    """
    layout, length = Layout(ring, 1), ring * local
    queries, keys = layout.ring_runs(length, rank), layout.ring_runs(length, source)
    return stacked([rectangles(queries, keys, starts) for starts in documents], local)


@library.custom_op("yarn_train::ring_attention", mutates_args=())
def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, scale: float, documents: Tensor | None, group: str
) -> tuple[Tensor, Tensor]:
    """Causal attention of sequences shared by a ring of ranks in zigzag order.

    Args:
        q: [B, H, S, D]; k, v: [B, Hkv, S, D]: this rank's tokens, chunks r and 2R-1-r of 2R.
        kernel: a name of ``primitives.PRIMITIVES``.
        documents: those of the whole sequences, see ``documents.table``; None is one document per sequence.
        group: name of the process group.

    Returns:
        output [B, H, S, D] (in memory [B, S, H, D]) and its log-sum-exp [B, H, S] over all keys of the sequence.
    """

    def compute() -> tuple[Tensor, Tensor]:
        ring, rows, local = Ring(process_group(group)), q.shape[0], q.shape[2]
        found = from_table(documents, rows, ring.size * local)
        queries = end_to_end(q)
        merger = Merger(queries)
        for source, keys, values in ring.shards(k, v):
            spans = spans_for(ring.rank, source, ring.size, local, found)
            kernels.attend_into(merger, kernel, queries, end_to_end(keys), end_to_end(values), scale, spans)
        out, lse = merger.result()
        return apart(out, rows), apart(lse, rows).contiguous()

    return detached(through_store(compute))


@ring_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, kernel: str, scale: float, documents: Tensor | None, group: str
) -> tuple[Tensor, Tensor]:
    return fake_result(q)


@library.custom_op("yarn_train::ring_attention_backward", mutates_args=())
def ring_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor | None,
    kernel: str,
    scale: float,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`ring_attention` by this rank's q, k and v."""
    ring, sums, local = Ring(process_group(group)), accumulator(q), q.shape[2]
    found = from_table(documents, q.shape[0], ring.size * local)
    dq = seq_major(q, sums, zero=True)
    upstream, queries, results = end_to_end(dout), end_to_end(q), (end_to_end(out), joined(lse))
    shape = (2, *k.transpose(1, 2).shape)
    arriving = torch.empty(shape, dtype=sums, device=k.device)
    transfer: list[dist.Work] = []
    for step, (source, keys, values) in enumerate(ring.shards(k, v)):
        shard = torch.zeros(shape, dtype=sums, device=k.device)  # what this rank adds to the gradients of the source
        dk, dv = shard.transpose(2, 3).unbind()
        spans = spans_for(ring.rank, source, ring.size, local, found)
        totals = (end_to_end(dq), end_to_end(dk), end_to_end(dv))
        inputs = (upstream, queries, end_to_end(keys), end_to_end(values))
        kernels.backward_into(*totals, kernel, *inputs, *results, scale, spans)
        wait(transfer)
        if step:
            shard += arriving  # what the ranks before this one have added
        sent, arriving = shard, torch.empty_like(shard)  # `sent` lives until its transfer is waited for
        transfer = ring.start_pass(sent, arriving, GRADIENTS)
    wait(transfer)  # after as many passes as ranks, each shard's gradients are back at their owner
    dk, dv = arriving.transpose(2, 3).unbind()
    return dq.to(q.dtype), _own(dk, k.dtype), _own(dv, v.dtype)


def _own(half: Tensor, dtype: torch.dtype) -> Tensor:
    """One half of a shared buffer as a tensor of its own: an operator's outputs must not share memory."""
    return half.to(dtype, copy=True)


@ring_attention_backward.register_fake
def _(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    documents: Tensor | None,
    kernel: str,
    scale: float,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return seq_major(q), seq_major(k), seq_major(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.kernel, ctx.scale, documents, ctx.group = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, documents)


def _backward(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = ring_attention_backward(dout, *ctx.saved_tensors, ctx.kernel, ctx.scale, ctx.group)
    return *gradients, None, None, None, None


ring_attention.register_autograd(_backward, setup_context=_save)
