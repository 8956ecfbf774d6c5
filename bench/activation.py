"""Recompute policies side by side at a long context: python -m bench.activation

Speed: one process holds the same small Llama once per policy and steps them in turn, forwards and backwards through the
list; each time is divided by that of full in the same round, and the median of these ratios counts. Times are CPU
seconds of one thread: on an idle machine the same as a clock on the wall, on a shared one free of its neighbours. The
share of attention in a block's work follows from tokens / hidden size alone: 16
(the default) is Llama-2-7B at 64k tokens.

Bytes: alive between forward and backward, by following every storage, over those of full; attention must keep
2h + 4n bytes more per token and block in bf16 (n heads, fp32 log-sum-exp). Losses must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.measure import KeptBytes, table
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import SDPA
from yarn_train.parallel.activation import apply
from yarn_train.parallel.offload import Mover

POLICIES = ("none", "full", "attention", "offload", "attention+offload")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Cell:
    """One policy: its model, and what was measured."""

    policy: str
    module: CausalLM
    mover: Mover | None
    seconds: list[float] = field(default_factory=list)
    loss: float = 0.0
    kept: int = 0


def build(policy: str, given: argparse.Namespace) -> Cell:
    """A Llama with the same weights for every policy."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64 * given.heads,
        intermediate_size=11 * 64 * given.heads // 4,  # 2.7 h, Llama 2's ratio
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads,
        vocab_size=256,
        max_position_embeddings=given.tokens,
        use_cache=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=SDPA, dtype=DTYPES[given.dtype])
    module, mover = CausalLM(model, "chunked"), Mover() if "offload" in policy else None
    apply(module.blocks, {"offload": "full", "attention+offload": "attention"}.get(policy, policy), mover)
    return Cell(policy, module, mover)


def forward(cell: Cell, tokens: int) -> torch.Tensor:
    """The loss of one sequence, the same for every cell."""
    ids = torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(1))
    return cell.module(ids, torch.arange(tokens).unsqueeze(0), ids.roll(-1, 1))


def step(cell: Cell, tokens: int) -> float:
    """CPU seconds of forward and backward."""
    started = time.process_time()
    loss = forward(cell, tokens)
    loss.backward()
    seconds = time.process_time() - started
    cell.loss = loss.item()
    cell.module.zero_grad(set_to_none=True)
    return seconds


def kept_bytes(cell: Cell, tokens: int) -> int:
    """Device bytes alive between forward and backward; those on their way to the host have arrived."""
    with KeptBytes() as kept:
        loss = forward(cell, tokens)
        total = kept.now
    del loss
    host = cell.mover.pool_bytes if cell.mover else 0  # on the CPU the host buffers were followed too
    return total - host


def main() -> None:
    """Measure every policy and print them against full recomputation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16, help="query heads of 64 dimensions")
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["none", "full", "attention", "offload"])
    given = parser.parse_args()
    if "full" not in given.policies:
        parser.error("--policies needs full, which the others are compared with")
    torch.set_num_threads(1)
    cells = [build(policy, given) for policy in given.policies]
    for cell in cells:
        cell.kept = kept_bytes(cell, given.tokens)
    for repeat in range(given.repeats):
        for cell in cells if repeat % 2 else reversed(cells):
            cell.seconds.append(step(cell, given.tokens))
    report(cells, given)


def report(cells: list[Cell], given: argparse.Namespace) -> None:
    """Print the table; refuse to when the losses differ."""
    if len({cell.loss for cell in cells}) != 1:
        raise SystemExit(f"losses differ: { {cell.policy: cell.loss for cell in cells} }")
    arithmetic = 64 * given.heads * DTYPES[given.dtype].itemsize + 4 * given.heads
    full = next(cell for cell in cells if cell.policy == "full")
    rows = []
    for cell in cells:
        over = (cell.kept - full.kept) / given.tokens / given.layers
        rows.append(
            [
                cell.policy,
                f"{given.tokens / statistics.median(cell.seconds):,.0f}",
                f"{statistics.median(a / b for a, b in zip(full.seconds, cell.seconds, strict=True)):.3f}",
                f"{cell.kept / 2**20:.1f}",
                f"{over:,.0f}",
                f"{arithmetic:,}" if cell.policy == "attention" else "",
                f"{cell.mover.host.peak / 2**20:.1f}" if cell.mover else "",
                f"{cell.loss / given.tokens:.7f}",
            ]
        )
    shape = f"{given.layers} blocks, {given.heads} heads of 64, {given.kv_heads} for keys and values"
    print(f"{given.tokens:,} tokens, {shape}, {given.dtype}, {given.repeats} interleaved steps each")
    kept = ["kept MiB", "over full B/token/block", "arithmetic", "host MiB"]
    print(table(["policy", "tokens/s", "x full", *kept, "loss/token"], rows))


if __name__ == "__main__":
    main()
