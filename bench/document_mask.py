"""What keeping documents apart costs and saves: python -m bench.document_mask

One attention layer, forwards and backwards, over one segment as the trainer packs it, without a mask
(data.document_mask=none) and inside of documents (block), stepped in turn in one process; the median time of each
counts. On the CPU times are CPU seconds of one thread. Segments are cut from a stream of documents of log-normal
length: books like PG19's, files and short texts; of all segments of a stream, the one whose attention FLOPs are nearest
to the stream's mean is timed.

FLOPs follow from the lengths alone: attention's, and those of a whole training step of Llama 2 7B.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bench.measure import table
from yarn_train.model import flops
from yarn_train.model.attention import attention
from yarn_train.model.documents import table as document_table
from yarn_train.model.registry import choose_kernel

# name: (median tokens per document, deviation of the logarithm). Books: 169 of PG19 have a median of 385 kB and a
# deviation of 0.60; all of it is 11 GB and 3 billion tokens, so 3.7 bytes per token. The others are round numbers.
KINDS = {"books": (104_000.0, 0.6), "files": (2_000.0, 1.2), "short texts": (150.0, 0.8)}
LLAMA_2_7B = (6_607_077_376, 32, 4096)  # matmul parameters, layers, attention width
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SEGMENTS = 501


@dataclass
class Cell:
    """One segment: where its documents start, None for no mask, and what was measured."""

    name: str
    starts: tuple[int, ...] | None
    seconds: list[float] = field(default_factory=list)


def segments(kind: str, tokens: int) -> list[tuple[int, ...]]:
    """The document starts of each segment of a stream, 0 first; the first document of a segment may be a rest."""
    median, sigma = KINDS[kind]
    rng, total, ends = np.random.default_rng(0), tokens * SEGMENTS, [0]
    while ends[-1] < total:
        ends.append(ends[-1] + max(2, int(rng.lognormal(math.log(median), sigma))))
    cuts = np.array(ends)
    found = []
    for first in range(0, total, tokens):
        inside = cuts[(cuts > first) & (cuts < first + tokens)] - first
        found.append((0, *inside.tolist()))
    return found


def share(starts: tuple[int, ...], tokens: int) -> float:
    """Of the whole segment's attention FLOPs."""
    return flops.squared_lengths((starts,), 1, tokens) / tokens**2


def cells(tokens: int, kinds: Sequence[str]) -> list[Cell]:
    """No mask, and of each kind the segment nearest to the mean of FLOPs."""
    made = [Cell("none", None)]
    for kind in kinds:
        found = segments(kind, tokens)
        mean = statistics.mean(share(starts, tokens) for starts in found)
        made.append(Cell(f"block, {kind}", _nearest(found, mean, tokens)))
    return made


def _nearest(found: list[tuple[int, ...]], mean: float, tokens: int) -> tuple[int, ...]:
    return min(found, key=lambda starts: abs(share(starts, tokens) - mean))


def step(cell: Cell, inputs: list[Tensor], primitive: str) -> float:
    """Seconds of forward and backward."""
    documents = None if cell.starts is None else document_table((cell.starts,))
    cuda = inputs[0].is_cuda
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    started = clock()
    out, _ = attention(*inputs, primitive, inputs[0].shape[3] ** -0.5, documents)
    out.backward(out.detach())
    if cuda:
        torch.cuda.synchronize()
    seconds = clock() - started
    for leaf in inputs:
        leaf.grad = None
    return seconds


def main() -> None:
    """Time every kind of segment and print it against no mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    device, dtype = torch.device(given.device), DTYPES[given.dtype]
    primitive = choose_kernel("auto", device, dtype).primitive
    inputs = [
        torch.randn(1, given.tokens, heads, given.head_dim, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for heads in (given.heads, given.kv_heads, given.kv_heads)
    ]
    rows = cells(given.tokens, given.kinds)
    small = [t[:, :, :256].detach().requires_grad_() for t in inputs]
    for cell in rows if device.type == "cuda" else []:
        step(cell, inputs, primitive)
    step(rows[0], small, primitive)  # the first call of all pays for what is made once
    for repeat in range(given.repeats):
        for cell in rows if repeat % 2 else reversed(rows):
            cell.seconds.append(step(cell, inputs, primitive))
    report(rows, given, primitive)


def report(rows: list[Cell], given: argparse.Namespace, primitive: str) -> None:
    """Print the table."""
    none = statistics.median(rows[0].seconds)
    whole = flops.flops_per_token(*LLAMA_2_7B, given.tokens)
    printed = []
    for cell in rows:
        seconds = statistics.median(cell.seconds)
        mine = 1.0 if cell.starts is None else share(cell.starts, given.tokens)
        linear = flops.flops_per_token(*LLAMA_2_7B, 0)
        of_step = (linear + mine * (whole - linear)) / whole
        printed.append(
            [
                cell.name,
                str(len(cell.starts)) if cell.starts else "",
                f"{seconds:.3f}",
                f"{seconds / none:.4f}",
                f"{mine:.4f}",
                f"{of_step:.3f}",
            ]
        )
    heads = f"{given.heads} heads of {given.head_dim}, {given.kv_heads} for keys and values"
    print(
        f"{given.tokens:,} tokens, {heads}, {given.dtype}, {primitive} kernel, {given.repeats} interleaved step(s) each"
    )
    print(table(["document_mask", "documents", "seconds", "x none", "FLOPs x none", "7B step's FLOPs"], printed))


if __name__ == "__main__":
    main()
