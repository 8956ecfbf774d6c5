"""Our trainer against the ones people would pick instead, on a CPU, in turns: python -m bench.cpu_vs_peers

The same untrained Llama under YaRN s=16, the same segments in the same order, bf16 compute with fp32 weights, AdamW,
gradients clipped at 1, one segment per step. Every trainer is a process of its own that takes a step when its turn
comes, so what slows the machine slows all of them; the ratio is the median over rounds of the peer's seconds by ours.

- hf: transformers' Trainer; with checkpointing, gradient_checkpointing=True;
- accelerate: a plain loop with all logits, as the reference's script;
- ours: what train.py runs; with checkpointing, memory.activation=attention: blocks run again, their attention does not;
- "compiled": compile.enabled=true, and the Trainer's torch_compile=True.

Peak memory is the largest resident set of the whole process, the interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.measure import table
from bench.peers.case import Case, write
from bench.peers.turns import Peer
from bench.peers.worker import TRAINERS

Cell = dict[str, dict[str, Any]]
HEADER = ("vocabulary", "checkpointing", "trainer", "tokens/s", "ours x", "MiB", "ours MiB / its", "largest loss diff.")


def measure(case: Case, names: list[str], warm: int) -> Cell:
    """What each trainer took for every step, its peak memory and its losses.

    Args:
        warm: first rounds that count for losses only: they compile, allocate and fill caches.
    """
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as processes:
        case = replace(case, folder=scratch)
        file = write(case)
        peers = []
        for name in names:  # one after the other: none loads while another one counts its memory
            peers.append(processes.enter_context(Peer(name, file, case.threads)))
            peers[-1].ready()
        for number in range(case.steps):
            for place in range(len(peers)):  # each round begins with another one
                peers[(number + place) % len(peers)].step()
        return {
            peer.name: {
                "seconds": [row["seconds"] for row in peer.rows[warm:]],
                "losses": [row["loss"] for row in peer.rows],
                "peak_bytes": peer.rows[-1]["peak_bytes"],
                "tokens_per_second": case.seq_len / statistics.median(row["seconds"] for row in peer.rows[warm:]),
            }
            for peer in peers
        }


def speed(cell: Cell, name: str, reference: str = "ours") -> float:
    """How many times as fast `reference` is: the median over rounds."""
    pairs = zip(cell[name]["seconds"], cell[reference]["seconds"], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def loss_difference(cell: Cell, name: str, reference: str = "ours") -> float:
    """The largest relative difference of the losses of one step."""
    pairs = zip(cell[name]["losses"], cell[reference]["losses"], strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def lines(case: Case, cell: Cell) -> list[list[str]]:
    """A cell's rows of the table."""
    found = []
    for name, row in cell.items():
        memory = cell["ours"]["peak_bytes"] / row["peak_bytes"]
        found.append(
            [
                f"{case.vocab:,}",
                "yes" if case.checkpointing else "no",
                name,
                f"{row['tokens_per_second']:,.0f}",
                f"{speed(cell, name):.2f}",
                f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{memory:.2f}",
                f"{loss_difference(cell, name):.1e}",
            ]
        )
    return found


def main() -> None:
    """Measure every cell and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 32000])
    parser.add_argument("--checkpointing", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--trainers", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3, help="rounds that count for losses only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="write all numbers here too")
    given = parser.parse_args()
    if "ours" not in given.trainers:
        parser.error("--trainers: all others are compared with ours")
    sizes = {name: getattr(given, name) for name in ("seq_len", "layers", "hidden", "steps", "threads", "dtype")}
    rows, found = [], []
    for vocab in given.vocab:
        for checkpointing in given.checkpointing:
            case = Case("", vocab=vocab, checkpointing=checkpointing == "yes", **sizes)
            cell = measure(case, given.trainers, given.warm)
            rows += lines(case, cell)
            found.append({"vocab": vocab, "checkpointing": case.checkpointing, "trainers": cell})
    print(f"{given.seq_len:,} tokens a step, {given.dtype}, {given.threads} threads, {given.steps} steps")
    print(table(HEADER, rows))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
