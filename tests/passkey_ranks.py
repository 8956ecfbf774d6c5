"""Jobs of the passkey tests, and what the ranks of one of them do: two processes that share the questions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from yarn_train.config import build
from yarn_train.dist.runtime import Runtime
from yarn_train.eval.documents import evaluated
from yarn_train.eval.job import Job
from yarn_train.eval.passkey import task
from yarn_train.eval.variants import Variant
from yarn_train.model.load import load_config

WORLD = 2
LENGTHS = [400, 450, 500]


class Said(list[str]):
    """What was printed."""

    def __call__(self, line: str) -> None:
        self.append(line)


def job(model: Path, folder: Path, runtime: Runtime, *labels: str, books: Path | None = None, **options: Any) -> Job:
    """The same weights under each label; the one called base counts as one."""
    settings = {"lengths": LENGTHS, "depths": 3, "trials": 3, "new_tokens": 6, **options}
    cfg = build(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "eval": {"batch_tokens": 2048, "source": "pg19" if books else "stdlib", "path": books and str(books)},
            "passkey": settings,
        }
    )
    variants = [Variant(label, "none", None, 1.0, None, str(model), None) for label in labels]
    tokenizer, base = AutoTokenizer.from_pretrained(model), load_config(str(model))
    return Job(cfg, variants, base, tokenizer, 32, 1.0, evaluated(cfg), folder, runtime, Said())


def main(rank: int, model: str, out: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(out, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    where = Path(out) / ("rank 0" if rank == 0 else "nothing is written here")
    task.run(job(Path(model), where, Runtime(rank, rank, WORLD, torch.device("cpu")), "a"))
    dist.destroy_process_group()
