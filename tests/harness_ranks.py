"""Jobs of the harness's tests, and what the ranks of one of them do: two processes, whole and sharded weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from yarn_train.config import build
from yarn_train.dist.runtime import Runtime
from yarn_train.errors import DataError
from yarn_train.eval.documents import evaluated
from yarn_train.eval.harness import task as harness
from yarn_train.eval.job import Job
from yarn_train.eval.variants import Variant
from yarn_train.model.load import load_config

WORLD = 2
LENGTH, FACTOR = 32, 4.0
TASKS = ["own_choice", "own_text", "own_group", "own_write"]


class Said(list[str]):
    """What was printed."""

    def __call__(self, line: str) -> None:
        self.append(line)


def job(
    model: Path,
    own_tasks: Path,
    folder: Path,
    runtime: Runtime,
    *labels: str,
    tasks: list[str],
    weights: Path | None = None,
    shard: bool = False,
    batch_tokens: int = 256,
    **options: Any,
) -> Job:
    """The same weights under each label; the one called base counts as one."""
    settings = {"include_path": str(own_tasks), "tasks": tasks, "shots": 2, "max_length": 96, "seed": 5, **options}
    cfg = build(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "eval": {"batch_tokens": batch_tokens, "shard": shard},
            "harness": settings,
        }
    )
    methods = {label: "none" if label == "base" else "yarn" for label in labels}
    of = str(weights or model)
    variants = [Variant(label, method, None, FACTOR, None, of, None) for label, method in methods.items()]
    tokenizer, base = AutoTokenizer.from_pretrained(model), load_config(str(model))
    return Job(cfg, variants, base, tokenizer, LENGTH, FACTOR, evaluated(cfg), folder, runtime, Said())


def main(rank: int, model: str, own_tasks: str, out: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(out, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    runtime = Runtime(rank, rank, WORLD, torch.device("cpu"))
    folder = Path(out)
    for name, tasks, options in (
        ("whole", TASKS, {}),
        ("sharded", TASKS, {"shard": True}),
        ("no room", ["own_write"], {"max_length": 12}),
    ):
        where = folder / name if rank == 0 else folder / "nothing is written here"
        try:
            harness.run(job(Path(model), Path(own_tasks), where, runtime, "a", tasks=tasks, **options))
        except DataError as error:
            (folder / f"{name}, {rank}.txt").write_text(str(error))
    dist.destroy_process_group()
