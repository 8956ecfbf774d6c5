"""What the ranks of the test of perplexity over ranks do: two processes, one file each."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from yarn_train.config import build
from yarn_train.dist.runtime import Runtime
from yarn_train.eval.loading import loaded, ranks_of
from yarn_train.eval.perplexity.gathered import scores
from yarn_train.eval.perplexity.plan import Plan
from yarn_train.eval.variants import Variant
from yarn_train.model.load import load_config

WORLD = 2
WINDOW = 48
LENGTHS = (70, 61, 90)
CASES = {
    "documents over ranks": (1, False, 3),
    "a rank without documents": (1, False, 1),
    "shared windows": (2, False, 3),
    "sharded weights, a rank without documents": (1, True, 1),
    "sharded weights, shared windows": (2, True, 3),
}


def plan_of(documents: int) -> Plan:
    """Documents of random tokens, scored from token 40 on after BOS."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(2, 300, (n,), generator=generator) for n in LENGTHS][:documents]
    names = [f"book{n}" for n in range(documents)]
    return Plan(texts, names, [16, WINDOW], 8, 40, bos_id=0, positions=True, batch_tokens=64)


def main(rank: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(out, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    runtime, report = Runtime(rank, rank, WORLD, torch.device("cpu")), {}
    for name, (context, shard, documents) in CASES.items():
        cfg = build({"model": {"path": folder, "dtype": "float32"}, "parallel": {"context": context}})
        cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, shard=shard))
        base = load_config(folder)
        ranks = ranks_of(base, cfg, runtime)
        with loaded(Variant.of("one", cfg.rope, None, folder), base, cfg, ranks) as model:
            found = scores(model, WINDOW, plan_of(documents), ranks, curves=True)
        report[name] = {**dataclasses.asdict(found), "curves": [curve.tolist() for curve in found.curves]}
    Path(out, f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
