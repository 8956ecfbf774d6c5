"""Seconds of a step against ranks: those that share one sequence, and those with a sequence each.

``python -m bench.scaling.ranks TASK`` under torchrun is one number of ranks; :func:`measure` starts it for each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.gpu.timing import Stopwatch
from bench.scaling.case import Built, Case, build, step
from yarn_train.data.batch import Batch, make_batch

WAYS = ("context", "data")  # one sequence over all ranks | a sequence per rank


def measure(case: Case, tokens: int, ranks: Sequence[int], repeats: int, cuda: bool) -> list[dict[str, Any]]:
    """Per number of ranks and way: {ranks, way, seconds, tokens (of all ranks), loss}.

    Raises:
        SystemExit: a rank failed; with the end of what it printed.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in ranks:
            file = Path(scratch) / "found.json"
            task = {"case": asdict(case), "tokens": tokens, "repeats": repeats, "file": str(file)}
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
            command = [sys.executable, *launcher, "-m", "bench.scaling.ranks", json.dumps(task)]
            env = os.environ | ({} if cuda else {"OMP_NUM_THREADS": "1"})
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{number} ranks failed:\n{done.stderr[-4000:]}")
            found += json.loads(file.read_text())
    return found


def main() -> None:
    """This rank's part."""
    task = json.loads(sys.argv[1])
    case = Case(**task["case"])
    ranks = int(os.environ["WORLD_SIZE"])
    both = {way: build(case, parallel={"context": ranks if way == "context" else 1}) for way in WAYS}
    batches = {way: _batch(built, case, task["tokens"]) for way, built in both.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, float] = {}
    for number in range(task["repeats"] + 1):
        for way in WAYS if number % 2 else reversed(WAYS):
            batch, count = batches[way]
            taken, loss = _timed(both[way], batch, count)
            losses[way] = loss
            if number:  # the first round warms up
                seconds[way].append(taken)
    if both["data"].runtime.is_main:
        rows = [
            {
                "ranks": ranks,
                "way": way,
                "seconds": statistics.median(seconds[way]),
                "tokens": task["tokens"] * (ranks if way == "data" else 1),
                "loss": losses[way],
            }
            for way in WAYS
        ]
        Path(task["file"]).write_text(json.dumps(rows))
    dist.destroy_process_group()


def _batch(built: Built, case: Case, tokens: int) -> tuple[Batch, float]:
    """This rank's tokens, and how many have a target on all ranks together."""
    place = built.context.mesh.data_rank
    row = torch.randint(0, case.vocab, (1, tokens), generator=torch.Generator().manual_seed(place))
    whole = make_batch(row)
    batch = built.context.shard(whole).to(built.runtime.device)
    return batch, float(whole.num_valid * built.context.mesh.data_size)


def _timed(built: Built, batch: Batch, count: float) -> tuple[float, float]:
    """Seconds of the slowest rank, and the loss of all of them."""
    device = built.runtime.device
    watch = Stopwatch(device)
    dist.barrier()
    watch.start()
    loss = step(built, batch, count)
    taken = torch.tensor(watch.stop(), dtype=torch.float64, device=device)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    dist.all_reduce(loss)
    return taken.item(), loss.item()


if __name__ == "__main__":
    main()
